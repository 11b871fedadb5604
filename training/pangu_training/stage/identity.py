"""What files are, and what made them: hashes of files and checkpoints, versions of libraries."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from pangu_training.stage.checkpoint import CONFIG, PROVENANCE_FILES, Checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.tensors import StoredTensor

LIBRARIES = (
    "pangu-coder2",
    "accelerate",
    "ctranslate2",
    "gptqmodel",
    "peft",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
)
HASH_CHUNK_BYTES = 8 << 20
MANIFEST = "manifest.json"  # what pangu-convert writes last into an artifact


def hash_files(
    folder: Path,
    names: Iterable[str],
    description: str,
    tensors: Mapping[str, Sequence[StoredTensor]] | None = None,
) -> dict[str, str]:
    """The sha256 of each of `names` in `folder`, with a progress bar in bytes; `tensors` are those of a file.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    names, tensors = list(names), tensors or {}
    total_bytes = sum((folder / name).stat().st_size for name in names)
    with contextlib.ExitStack() as stack:
        if tensors:
            from pangu_training.stage.finite import one_thread

            stack.enter_context(one_thread())
        bar: tqdm[Any] = tqdm(
            total=total_bytes, desc=description, unit="B", unit_scale=True, leave=False, delay=1, disable=None
        )
        stack.enter_context(bar)
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=2))
        hashed = pool.map(lambda name: sha256_of(folder / name, bar, tensors.get(name, ())), names)
        return dict(zip(names, hashed, strict=True))


def sha256_of(file: Path, bar: "tqdm[Any] | None" = None, tensors: Sequence[StoredTensor] = ()) -> str:
    """The sha256 of one file, in hexadecimal; on the way, numbers of its `tensors` are looked at.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    if tensors:
        from pangu_training.stage.finite import require_finite

    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for tensor, chunk in _chunks(stream, tensors):
            digest.update(chunk)
            if tensor is not None:
                require_finite(tensor, chunk)
            if bar is not None:
                bar.update(len(chunk))
    return digest.hexdigest()


def _chunks(
    stream: IO[bytes], tensors: Sequence[StoredTensor]
) -> Iterator[tuple[StoredTensor | None, bytearray]]:
    """All bytes of a file in order, cut where a tensor begins, and which tensor they are of."""
    for tensor in tensors:
        yield None, bytearray(stream.read(tensor.start - stream.tell()))
        left = tensor.num_bytes
        while left and (chunk := bytearray(stream.read(min(left, HASH_CHUNK_BYTES)))):
            left -= len(chunk)
            yield tensor, chunk
    while rest := bytearray(stream.read(HASH_CHUNK_BYTES)):
        yield None, rest


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """The identity of a checkpoint: its config, weights, tokenizer and generation files. Raises `CheckpointError`."""
    return combined_hash(checkpoint_hashes(checkpoint))


def checkpoint_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """The sha256 of those files.

    Raises:
        CheckpointError: one is not what it was when the checkpoint was imported or exported, or a weight is not
            finite: who reads all of them can as well look.
    """
    names = [file.name for file in (*checkpoint.weight_files, *checkpoint.text_files)]
    hashes = hash_files(
        checkpoint.path, [*names, CONFIG], "hashing the checkpoint", tensors_by_file(checkpoint)
    )
    recorded = (checkpoint.provenance or {}).get("files")
    if isinstance(recorded, dict):
        weights = {file.name for file in checkpoint.weight_files}
        for name, sha256 in hashes.items():
            if sha256 != recorded.get(name, None if name in weights else sha256):
                record = next(one for one in PROVENANCE_FILES if (checkpoint.path / one).is_file())
                raise CheckpointError(
                    f"{checkpoint.path / name} changed since {record} was written (its sha256 differs): make the "
                    f'checkpoint again, or, if the change is yours, delete "files" in {record}'
                )
    return hashes


def tensors_by_file(checkpoint: Checkpoint) -> dict[str, list[StoredTensor]]:
    """The tensors of each weight file, as they lie there."""
    found: dict[str, list[StoredTensor]] = {}
    for tensor in checkpoint.tensors.values():
        found.setdefault(tensor.file.name, []).append(tensor)
    return found


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One sha256 over file names and their hashes: the identity of a checkpoint."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def artifact_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """An artifact's identity, from the files of its manifest. Scores are not part of it."""
    return combined_hash({name: record["sha256"] for name, record in files.items()})


def library_versions() -> dict[str, str]:
    """Versions of the libraries that have a hand in an artifact, those that are installed."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
