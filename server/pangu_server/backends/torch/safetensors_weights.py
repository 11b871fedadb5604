"""The weights in an artifact's safetensors files, by the names that they have there."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.torch.parameters import Weights, matched
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.tensors import read_tensors


def open_transformers(artifact: Artifact, device: str) -> Weights:
    """The weights of an unquantized artifact; as `open_weights`."""
    return matched(artifact, checkpoint_config(artifact), stored_tensors(artifact, device))


def checkpoint_config(artifact: Artifact) -> Any:
    """The config of the checkpoint, which lies in the artifact; `ArtifactError` when it is damaged."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            artifact.path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ArtifactError(
            f"{artifact.path}/config.json is damaged ({error}): convert the checkpoint again"
        ) from error
    config.dtype = getattr(torch, artifact.manifest.dtype)
    return config


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
