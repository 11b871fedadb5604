"""What files are, and what made them: hashes of files and checkpoints, versions of libraries."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pangu_training.stage.checkpoint import CONFIG, PROVENANCE_FILES, Checkpoint
from pangu_training.stage.errors import CheckpointError

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


def hash_files(folder: Path, names: Iterable[str], description: str) -> dict[str, str]:
    """The sha256 of each of `names` in `folder`, with a progress bar in bytes."""
    names = list(names)
    total_bytes = sum((folder / name).stat().st_size for name in names)
    with (
        tqdm(
            total=total_bytes, desc=description, unit="B", unit_scale=True, leave=False, delay=1, disable=None
        ) as bar,
        ThreadPoolExecutor(max_workers=2) as pool,
    ):
        return dict(zip(names, pool.map(lambda name: sha256_of(folder / name, bar), names), strict=True))


def sha256_of(file: Path, bar: "tqdm[Any] | None" = None) -> str:
    """The sha256 of one file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
            if bar is not None:
                bar.update(len(chunk))
    return digest.hexdigest()


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """The identity of a checkpoint: its config, weights, tokenizer and generation files. Raises `CheckpointError`."""
    return combined_hash(checkpoint_hashes(checkpoint))


def checkpoint_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """The sha256 of those files.

    Raises:
        CheckpointError: one is not what it was when the checkpoint was imported or exported.
    """
    names = [file.name for file in (*checkpoint.weight_files, *checkpoint.text_files)]
    hashes = hash_files(checkpoint.path, [*names, CONFIG], "hashing the checkpoint")
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
