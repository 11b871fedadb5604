"""What the benchmark knows of an artifact besides its figures, and where it writes them."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pangu_convert.artifact import Artifact, read_artifact, write_scores
from pangu_convert.verification import BOUNDS, bits_of, outside
from pangu_training.asking.endpoint import Endpoint
from pangu_training.stage.command import ServerOptions


def subject_of(artifact: Artifact, server: ServerOptions) -> dict[str, Any]:
    """The artifact and how it is served, as part of a result's configuration."""
    manifest = artifact.manifest
    return {"model": manifest.name, "sha256": manifest.sha256, **asdict(server)}


def record(path: Path, scores: Mapping[str, Any]) -> None:
    """Add `scores` to those in the manifest, as it is now; says so when the folder cannot be written."""
    artifact = read_artifact(path)
    try:
        write_scores(artifact, {**artifact.manifest.scores, **scores})
    except OSError as error:  # the figures are in the output, and many mount artifacts read-only
        print(f"{path}: the scores are not recorded in the manifest: {error}", file=sys.stderr)


def description(artifact: Artifact) -> dict[str, Any]:
    """What the manifest says, the distance from the source included when `pangu-convert verify` measured it."""
    manifest = artifact.manifest
    fidelity = manifest.scores.get("fidelity")
    bits = bits_of(manifest)
    return {
        "sha256": manifest.sha256,
        "format": manifest.format,
        "quantization": manifest.quantization,
        "bits": bits,
        "source": manifest.source.name,
        "source_sha256": manifest.source.sha256,
        "stored_weight_bytes": manifest.weight_bytes,
        "calibration": manifest.calibration,
        "fidelity": fidelity,
        "fidelity_outside": outside(fidelity, BOUNDS[bits]) if fidelity else [],
    }


def running_description(endpoint: Endpoint) -> dict[str, Any]:
    """The same of a server that runs elsewhere: what its model's card says, None for what it does not."""
    names = ("sha256", "format", "bits", "source_sha256", "stored_weight_bytes", "calibration", "fidelity")
    return {
        **dict.fromkeys(names),
        **{name: endpoint.card.get(name) for name in ("quantization", "source")},
        "fidelity_outside": [],
    }
