"""The artifact: a folder that the server loads, described by a `manifest.json` that is written last.

Standard library (and tqdm) only, so that every stage can read one. A folder without a manifest is not an
artifact; nothing is guessed from file names.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pangu_training.stage.checkpoint import MOST_CONTEXT
from pangu_training.stage.errors import PanguError
from pangu_training.stage.files import is_there, read_object
from pangu_training.stage.identity import MANIFEST, artifact_hash, hash_files, library_versions
from pangu_training.stage.output import write_file
from pangu_training.stage.tensors import FLOATING
from pangu_training.stage.typed import typed

SCHEMA_VERSION = 1
CHECKPOINT_CONFIG = "checkpoint_config.json"  # the checkpoint's config.json, in a format that has another one
UNKNOWN = "unknown"  # what a model that others quantized does not say of itself
Format = Literal["transformers", "ctranslate2", "gptq"]


class ArtifactError(PanguError):
    """The folder is not an artifact, or not the one its manifest describes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of an artifact."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint an artifact was converted from."""

    name: str
    sha256: str  # of the checkpoint's file names and hashes, see `combined_hash`
    provenance: Mapping[str, Any] | None = None  # what the checkpoint says of itself (import.json, …)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact is and where it came from. Times are UTC, sizes bytes."""

    name: str  # the model id that the server answers to
    format: Format
    architecture: str
    quantization: str  # "none", "int8", …
    dtype: str  # of what is not quantized
    weight_files: tuple[str, ...]
    context_length: int
    end_token_ids: tuple[int, ...]
    source: Source
    files: Mapping[str, FileRecord]
    library_versions: Mapping[str, str]
    created_at: str
    calibration: Mapping[str, Any] | None = None  # data and options of a calibrated quantization
    scores: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def weight_bytes(self) -> int:
        """Size of the weight files on disk."""
        return sum(self.files[name].size_bytes for name in self.weight_files)

    @property
    def is_quantized(self) -> bool:
        """Whether the matrices are of less than a floating type: a format may call one of those its quantization."""
        return self.quantization not in ("none", *FLOATING.values())

    @property
    def sha256(self) -> str:
        """The artifact's identity: one hash over its files' names and hashes. Scores are not part of it."""
        return artifact_hash({name: dataclasses.asdict(record) for name, record in self.files.items()})

    def to_json(self) -> str:
        """The manifest as the text of `manifest.json`.

        Raises:
            ArtifactError: it has a number that JSON has not.
        """
        try:
            return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"
        except ValueError:
            raise ArtifactError(
                f"the manifest of {self.name} was not written, as a figure in it is NaN or infinite: the model may be "
                "broken, convert the checkpoint again"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact folder: every file its manifest names is there with its size."""

    path: Path
    manifest: Manifest


def seal(
    folder: Path,
    *,
    name: str,
    format: Format,
    architecture: str,
    quantization: str,
    dtype: str,
    weight_files: Iterable[str],
    context_length: int,
    end_token_ids: Iterable[int],
    source: Source,
    calibration: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hash every file of `folder` and write its manifest, which makes it an artifact."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    manifest = Manifest(
        name=name,
        format=format,
        architecture=architecture,
        quantization=quantization,
        dtype=dtype,
        weight_files=tuple(weight_files),
        context_length=context_length,
        end_token_ids=tuple(end_token_ids),
        source=source,
        files={
            name: FileRecord(sha256=sha256, size_bytes=(folder / name).stat().st_size)
            for name, sha256 in hash_files(folder, names, "hashing the artifact").items()
        },
        library_versions=library_versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        calibration=calibration,
    )
    write_file(folder / MANIFEST, manifest.to_json().encode())
    return manifest


def read_artifact(path: Path) -> Artifact:
    """Read the artifact at `path` and check that its files are there with their sizes (not their hashes).

    Raises:
        ArtifactError: no artifact, a newer kind of manifest, or a file that is missing or cut short.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a folder: give an artifact that pangu-convert wrote")
    file = path / MANIFEST
    try:
        there = is_there(file)
        manifest = _parse(read_object(file), file) if there else None
    except ValueError as error:
        raise ArtifactError(f"{file} is damaged ({error}): convert the checkpoint again") from None
    if manifest is None:
        raise ArtifactError(
            f"{path} is not an artifact (it has no {MANIFEST}): make one from a checkpoint with "
            "pangu-convert ctranslate2, gptq or transformers"
        )
    for name, record in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing: convert the checkpoint again")
        if file.stat().st_size != record.size_bytes:
            raise ArtifactError(
                f"{file} has {file.stat().st_size} bytes, not the {record.size_bytes} of the manifest: "
                "convert the checkpoint again"
            )
    return Artifact(path=path, manifest=manifest)


def verify(artifact: Artifact) -> None:
    """Hash every file of the artifact; `ArtifactError` names those that differ from the manifest."""
    records = artifact.manifest.files
    hashes = hash_files(artifact.path, records, "checking hashes")
    changed = [name for name, record in records.items() if hashes[name] != record.sha256]
    if changed:
        raise ArtifactError(
            f"{', '.join(changed)} in {artifact.path} changed since the conversion (sha256 differs from the "
            "manifest): convert the checkpoint again"
        )


def write_scores(artifact: Artifact, scores: Mapping[str, Any]) -> None:
    """Replace the recorded scores in the artifact's manifest; nothing else changes."""
    manifest = dataclasses.replace(artifact.manifest, scores=scores)
    write_file(artifact.path / MANIFEST, manifest.to_json().encode())


def _parse(fields: Mapping[str, Any], path: Path) -> Manifest:
    """The manifest of these `fields`; `ValueError` says what makes no sense."""
    version = fields.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: install the pangu-coder2 that "
            "wrote it, or convert again"
        )
    manifest = typed(Manifest, dict(fields))
    if not manifest.name or not manifest.name.isprintable():
        raise ValueError(f"name is {manifest.name[:60]!r}, and should be a word")
    for name, record in manifest.files.items():
        if ".." in Path(name).parts or Path(name).is_absolute() or not name.isprintable():
            raise ValueError(f"files names {name[:60]!r}, which is outside its folder")
        if record.size_bytes < 0:
            raise ValueError(f"{name} has {record.size_bytes} bytes")
    if not manifest.weight_files or not manifest.files.keys() >= set(manifest.weight_files):
        raise ValueError("weight_files is not among files")
    if not 0 < manifest.context_length <= MOST_CONTEXT:
        raise ValueError(f"context_length is {manifest.context_length}")
    if not manifest.end_token_ids or min(manifest.end_token_ids) < 0:
        raise ValueError("end_token_ids names no tokens")
    if manifest.dtype not in FLOATING.values():
        raise ValueError(
            f"dtype is {manifest.dtype[:60]!r}, and should be one of {', '.join(FLOATING.values())}"
        )
    return manifest
