"""A transformers model without numbers, and putting its numbers in place one by one, straight on their device.

No parameter passes through a second copy of the model. What is computed, not stored, comes from transformers' own code.
"""

from typing import Any

import torch
from torch import nn

from pangu_convert.artifact import ArtifactError
from pangu_training.stage import architecture as architectures
from pangu_training.stage.errors import CheckpointError


def build(config: Any, architecture: str) -> Any:
    """The transformers model class `architecture` for `config` on the `meta` device: names and shapes, no numbers.

    Raises:
        ArtifactError: there is no such model.
    """
    try:
        return architectures.build(config, architecture)
    except CheckpointError as error:
        raise ArtifactError(f"the artifact {error}: convert the checkpoint again") from error


def stored_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """What has to be put in place, by transformers' name; of tied parameters only the one that others follow."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    }


def place(model: Any, name: str, value: torch.Tensor, device: str | torch.device, dtype: torch.dtype) -> None:
    """Make `value` the parameter or buffer `name` of `model`, on `device`; floating-point numbers become `dtype`."""
    tensor = value.to(device, non_blocking=True)  # as it is stored: it is smaller, and a GPU casts faster
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    module, attribute = _owner(model, name)
    if attribute in module._parameters:
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(module, attribute, tensor)


def complete(model: Any, device: str | torch.device) -> None:
    """Tie what is tied, compute on `device` what is not stored, and check that nothing is left without numbers.

    Modules that took the place of a quantized matrix are left alone: who put them there has tied them.

    Raises:
        ArtifactError: a parameter has no numbers.
    """
    for target, source in model.all_tied_weights_keys.items():
        (module, attribute), (source_module, source_attribute) = _owner(model, target), _owner(model, source)
        if attribute in module._parameters and source_attribute in source_module._parameters:
            setattr(module, attribute, getattr(source_module, source_attribute))
    computed = {name: buffer for name, buffer in model.named_non_persistent_buffers() if buffer.is_meta}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta and name not in computed:
            raise ArtifactError(
                f"{type(model).__name__} was left without {name}: convert the checkpoint again"
            )
    architectures.compute(model, computed, device)


def _owner(model: Any, name: str) -> tuple[Any, str]:
    """The module that `name` is an attribute of, and the attribute."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute
