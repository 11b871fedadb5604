"""`pangu-convert inspect`: what an artifact is, and with `--verify` whether it is still that."""

from dataclasses import dataclass
from pathlib import Path

from pangu_convert.artifact import Artifact, read_artifact, verify
from pangu_training.stage.options import argument, option


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """What to look at, and how closely."""

    artifact: Path = argument("the artifact folder")
    verify: bool = option("check the sha256 of every file", False)


def inspect(options: InspectOptions) -> None:
    """Print the manifest (JSON on stdout), or with `verify` one line."""
    artifact = read_artifact(options.artifact)
    if options.verify:
        verify(artifact)
        print(f"{artifact.path}: all {len(artifact.manifest.files)} files match; {summary(artifact)}")
    else:
        print(artifact.manifest.to_json(), end="")


def summary(artifact: Artifact) -> str:
    """One line for people: name, format, size."""
    manifest = artifact.manifest
    return (
        f"{manifest.name}: {manifest.format}, {manifest.architecture}, quantization {manifest.quantization}, "
        f"rest {manifest.dtype}, {manifest.weight_bytes / 1e9:.3f} GB of weights, "
        f"context {manifest.context_length} tokens"
    )
