"""`pangu-convert inspect`: what an artifact is, and with `--verify` whether it is still that."""

import argparse
from pathlib import Path

from pangu_convert.artifact import Artifact, read_artifact, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("artifact", type=Path, help="the artifact folder")
    parser.add_argument("--verify", action="store_true", help="check the sha256 of every file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the manifest (JSON on stdout), or with `--verify` one line."""
    artifact = read_artifact(arguments.artifact)
    if arguments.verify:
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
