"""A transformers model without numbers, and putting its numbers in place one by one, straight on their device.

No parameter passes through a second copy of the model. What is computed, not stored, comes from transformers' own code.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from pangu_convert.artifact import ArtifactError

OLD_BUFFERS = r"rotary_emb\.inv_freq"  # transformers 4 stored it in every layer; it is computed


def build(config: Any, architecture: str) -> Any:
    """The transformers model class `architecture` for `config` on the `meta` device: names and shapes, no numbers."""
    with torch.device("meta"):
        return getattr(transformers, architecture)(config).eval()


def stored_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """What has to be put in place, by transformers' name; of tied parameters only the one that others follow."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    }


def ignored(model: Any, name: str) -> bool:
    """Whether a checkpoint may hold the tensor `name` without `model` having it: a buffer of older versions."""
    patterns = (*(model._keys_to_ignore_on_load_unexpected or ()), OLD_BUFFERS)
    return any(re.search(pattern, name) for pattern in patterns)


def place(model: Any, name: str, value: torch.Tensor, device: str | torch.device, dtype: torch.dtype) -> None:
    """Make `value` the parameter or buffer `name` of `model`, on `device`; floating-point numbers become `dtype`."""
    tensor = value.to(device, non_blocking=True)  # as it is stored: on a GPU a cast is free
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    is_parameter = attribute in module._parameters
    setattr(module, attribute, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def complete(model: Any, device: str | torch.device) -> None:
    """Tie what is tied, compute on `device` what is not stored, and check that nothing is left without numbers.

    Raises:
        ArtifactError: a parameter has no numbers.
    """
    model.tie_weights(recompute_mapping=False)
    owners = set()
    for name, buffer in list(model.named_non_persistent_buffers()):
        owner, _, attribute = name.rpartition(".")
        owners.add(owner)
        setattr(model.get_submodule(owner), attribute, torch.empty_like(buffer, device=device))
    for name, tensor in _tensors(model).items():
        if tensor.is_meta:
            raise ArtifactError(
                f"{type(model).__name__} was left without {name}: convert the checkpoint again"
            )
    for owner in owners:
        module = model.get_submodule(owner)
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = True  # what transformers then leaves as it is
        model._init_weights(module)  # as from_pretrained does: rotary frequencies, GPTBigCode's mask


def _tensors(model: Any) -> Mapping[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
