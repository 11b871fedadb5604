"""What of an artifact's weights a token does not read: of an input embedding of its own, all rows but one."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from pangu_convert.artifact import Artifact
from pangu_convert.model_bin import MODEL_BIN, read_model_bin

CTRANSLATE2_INPUT, CTRANSLATE2_HEAD = "decoder/embeddings/weight", "decoder/projection/weight"
INPUTS, HEAD = ("embed_tokens.weight", "wte.weight"), "lm_head.weight"  # as transformers' names end


def lookup_bytes(artifact: Artifact) -> int:
    """Bytes of the input embedding where the output head is another matrix; 0 where one matrix is both.

    A head is multiplied whole for each token, of an input embedding one row is looked up.
    """
    sizes: dict[str, int] = {}
    for name in artifact.manifest.weight_files:
        file = artifact.path / name
        if name == MODEL_BIN:  # its aliases have no bytes
            sizes |= {name: variable.num_bytes for name, variable in read_model_bin(file).variables.items()}
        else:
            sizes |= dict(_safetensors_sizes(file))
    if CTRANSLATE2_INPUT in sizes and CTRANSLATE2_HEAD in sizes:
        return sizes[CTRANSLATE2_INPUT] + sizes.get(f"{CTRANSLATE2_INPUT}_scale", 0)
    if any(name.endswith(HEAD) for name in sizes):
        return sum(size for name, size in sizes.items() if name.endswith(INPUTS))
    return 0


def _safetensors_sizes(file: Path) -> Iterator[tuple[str, int]]:
    with file.open("rb") as stream:
        [length] = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            yield name, end - start
