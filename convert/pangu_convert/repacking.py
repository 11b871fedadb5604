"""Packed layers of others in the one layout of our GPTQ artifacts: AutoGPTQ's, zero points as they are (`gptq_v2`).

AWQ packs eight outputs into a word, in an order of its own; GPTQ eight inputs. The integers, zero points and scales
stay what they are, so the matrix does, to the bit.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pangu_convert.gptq_weights import fields
from pangu_convert.packed import REMEDY, Layer, Scheme
from pangu_convert.weights import open_weights
from pangu_training.stage.checkpoint import WEIGHTS, Checkpoint
from pangu_training.stage.errors import CheckpointError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # field i of a word is output AWQ_ORDER[i] of its eight


def write_repacked(
    checkpoint: Checkpoint, plain: Checkpoint, scheme: Scheme, layers: Mapping[str, Layer], folder: Path
) -> dict[str, str]:
    """Write the weight files of `checkpoint`, of its plain tensors those of `plain`; tensor -> file.

    Memory: what is repacked of one file.

    Raises:
        CheckpointError: a packed tensor holds what none can.
    """
    of_layer = {part.name: (layer, kind) for layer in layers.values() for kind, part in layer.parts.items()}
    places: dict[str, str] = {}
    for file in checkpoint.weight_files:
        name = WEIGHTS if len(checkpoint.weight_files) == 1 else file.name
        tensors: dict[str, torch.Tensor] = {}
        with open_weights(file) as weights:
            for key in weights.keys():  # noqa: SIM118 (not a mapping)
                if key in of_layer:
                    layer, kind = of_layer[key]
                    tensors |= _repacked(scheme, layer, kind, weights.get_tensor(key))
                elif key in plain.tensors:
                    tensors[key] = weights.get_tensor(key)  # mapped, not read
            save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    return places


def packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers below 2**bits (rows, n) as int32 (rows, n * bits / 32): `gptq_weights.fields` the other way round."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (numbers.unflatten(1, (-1, 32 // bits)) << shifts).sum(-1, dtype=torch.int32)


def _repacked(
    scheme: Scheme, layer: Layer, kind: str, tensor: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    name = f"{layer.name}.{kind}"
    if kind == "g_idx" and not 0 <= int(tensor.min()) <= int(tensor.max()) < layer.groups:
        raise CheckpointError(
            f"{name} in {layer.parts[kind].file} names a group outside of 0 to {layer.groups - 1}: download it again"
        )
    if kind == "qzeros" and scheme.stored_less:
        tensor = _true_zeros(scheme, layer, tensor)
    if (
        kind == "qzeros"
        and scheme.facts.get("sym")
        and (fields(tensor, layer.bits) != 1 << (layer.bits - 1)).any()
    ):
        raise CheckpointError(
            f"{name} in {layer.parts[kind].file} has zero points of its own, and the folder says that it is symmetric "
            "(sym): set sym to false if it is not, or checkpoint_format to what it is"
        )
    if scheme.method == "awq":
        if kind == "scales":
            yield (
                f"{layer.name}.g_idx",
                torch.arange(layer.inputs, dtype=torch.int32) * layer.groups // layer.inputs,
            )
        else:
            places = torch.tensor(AWQ_ORDER).argsort()
            numbers = fields(tensor, 4).unflatten(1, (-1, 8))[:, :, places].flatten(1)
            tensor = packed(numbers, 4) if kind == "qzeros" else packed(numbers.t(), 4).t().contiguous()
    yield name, tensor


def _true_zeros(scheme: Scheme, layer: Layer, qzeros: torch.Tensor) -> torch.Tensor:
    """Zero points of the first format, which are stored less one, as they are.

    One of 0 does not fit there. GPTQModel subtracts and adds one to all fields of a word at once, so that it borrows
    from the next field and comes back; of other programs some take what is left for 2**bits and some for 0.
    """
    most = (1 << layer.bits) - 1
    if not scheme.quantizer.startswith("gptqmodel") and (fields(qzeros, layer.bits) == most).any():
        raise CheckpointError(
            f"{layer.name}.qzeros in {layer.parts['qzeros'].file} holds {most}, which programs read differently "
            f"(2**{layer.bits} or 0): {REMEDY}"
        )
    ones = sum(1 << shift for shift in range(0, 32, layer.bits))
    return qzeros + torch.tensor(ones, dtype=torch.int32)
