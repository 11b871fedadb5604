"""The weights in an artifact's safetensors files, by the names that they have there."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from safetensors import safe_open

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.torch.parameters import Weights, matched
from pangu_training.stage.architecture import config_of
from pangu_training.stage.checkpoint import CONFIG, read_json
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.tensors import read_tensors


def open_transformers(artifact: Artifact, device: str) -> Weights:
    """The weights of an unquantized artifact; as `open_weights`."""
    return matched(artifact, checkpoint_config(artifact), stored_tensors(artifact, device))


def checkpoint_config(artifact: Artifact) -> Any:
    """The config of the checkpoint, which lies in the artifact; `ArtifactError` when it is damaged."""
    try:
        return config_of(read_json(artifact.path / CONFIG), artifact.manifest.dtype)
    except CheckpointError as error:
        raise ArtifactError(
            f"{artifact.path / CONFIG} is damaged ({error}): convert the checkpoint again"
        ) from error


def stored_tensors(artifact: Artifact, device: str) -> Mapping[str, Callable[[], torch.Tensor]]:
    """How to read each tensor of the artifact onto `device`: on the CPU it is mapped, not copied.

    Raises:
        ArtifactError: a file is damaged, or a tensor is there twice.
    """
    try:
        read_tensors(artifact.path / name for name in artifact.manifest.weight_files)
    except CheckpointError as error:
        raise ArtifactError(f"{error}; then convert it again") from None
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for name in artifact.manifest.weight_files:
        file: Any = safe_open(artifact.path / name, framework="pt", device=device)
        readers |= {key: partial(file.get_tensor, key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return readers
