"""What of an artifact's weights a token does not read: of an input embedding of its own, all rows but one."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pangu_convert.artifact import Artifact

CTRANSLATE2_INPUT, CTRANSLATE2_HEAD = "decoder/embeddings/weight", "decoder/projection/weight"
INPUTS, HEAD = ("embed_tokens.weight", "wte.weight"), "lm_head.weight"  # as transformers' names end


def lookup_bytes(artifact: Artifact) -> int:
    """Bytes of the input embedding where the output head is another matrix; 0 where one matrix is both.

    A head is multiplied whole for each token, of an input embedding one row is looked up.
    """
    sizes: dict[str, int] = {}
    for name in artifact.manifest.weight_files:
        file = artifact.path / name
        sizes |= dict(_ctranslate2_sizes(file) if name == "model.bin" else _safetensors_sizes(file))
    if CTRANSLATE2_INPUT in sizes and CTRANSLATE2_HEAD in sizes:
        return sizes[CTRANSLATE2_INPUT] + sizes.get(f"{CTRANSLATE2_INPUT}_scale", 0)
    if any(name.endswith(HEAD) for name in sizes):
        return sum(size for name, size in sizes.items() if name.endswith(INPUTS))
    return 0


def _safetensors_sizes(file: Path) -> Iterator[tuple[str, int]]:
    with file.open("rb") as stream:
        (length,) = _unpack(stream, "<Q")
        header = json.loads(stream.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            yield name, end - start


def _ctranslate2_sizes(file: Path) -> Iterator[tuple[str, int]]:
    """Of the variables in `model.bin`, as `ModelSpec._serialize` writes them; aliases have no bytes and come last."""
    with file.open("rb") as stream:
        _unpack(stream, "=I")  # version
        _string(stream)
        _, count = _unpack(stream, "=II")  # revision
        for _ in range(count):
            name = _string(stream)
            (rank,) = _unpack(stream, "=B")
            *_, size = _unpack(stream, f"={rank}IBI")  # shape, type
            yield name, size
            stream.seek(size, 1)


def _string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "=H")
    return stream.read(length)[:-1].decode()


def _unpack(stream: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, stream.read(struct.calcsize(form)))
