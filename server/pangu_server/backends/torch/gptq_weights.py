"""The weights of a GPTQ artifact in AutoGPTQ's format, its packed matrices as integers with a scale a group."""

from collections.abc import Callable
from functools import partial

import torch

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_convert.gptq_weights import BITS, PACKED_TENSORS, dequantize, fields, packed_bits, stored_less
from pangu_server.backends.torch.parameters import Value, Weights, matched
from pangu_server.backends.torch.quantized import Quantized
from pangu_server.backends.torch.safetensors_weights import checkpoint_config, stored_tensors

SUFFIXES = tuple(f".{part}" for part in PACKED_TENSORS)


def open_gptq(artifact: Artifact, device: str) -> Weights:
    """The weights of a GPTQ artifact; as `open_weights`. Matrices with groups of several sizes become plain ones."""
    less = stored_less(artifact.path)
    config = checkpoint_config(artifact)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    tensors = {**stored_tensors(artifact, device)}
    readers: dict[str, Callable[[], Value]] = {}
    unpacked: list[str] = []
    packed = [name.rpartition(".")[0] for name in tensors if name.endswith(SUFFIXES)]
    for layer in dict.fromkeys(packed):
        parts = {}
        for part in PACKED_TENSORS:
            read = tensors.pop(f"{layer}.{part}", None)
            if read is None:
                raise ArtifactError(
                    f"{artifact.path} has no tensor {layer}.{part}: convert the checkpoint again"
                )
            parts[part] = read
        readers[f"{layer}.weight"] = partial(_read, artifact, layer, parts, less, unpacked)
    return matched(artifact, config, {**tensors, **readers}, unpacked)


def _read(
    artifact: Artifact,
    layer: str,
    readers: dict[str, Callable[[], torch.Tensor]],
    less: int,
    unpacked: list[str],
) -> Value:
    parts = {name: read() for name, read in readers.items()}
    bits = packed_bits(parts["qweight"], parts["g_idx"])
    if not _fit(parts, bits):
        raise ArtifactError(
            f"the packed tensors of {layer} in {artifact.path} do not fit together as 4 or 8 bits: convert the "
            "checkpoint again"
        )
    quantized = unpack(**parts, bits=bits, less=less)
    if quantized is None:
        unpacked.append(f"{layer}.weight")
        return dequantize(**parts, bits=bits, less=less)
    return quantized


def _fit(parts: dict[str, torch.Tensor], bits: int) -> bool:
    qweight, qzeros, scales, g_idx = (parts[name] for name in PACKED_TENSORS)
    inputs, (groups, outputs) = g_idx.numel(), scales.shape
    return (
        bits in BITS
        and qweight.dtype == qzeros.dtype == torch.int32
        and tuple(qweight.shape) == (inputs * bits // 32, outputs)
        and tuple(qzeros.shape) == (groups, outputs * bits // 32)
        and 0 <= int(g_idx.min()) <= int(g_idx.max()) < groups
    )


def unpack(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor,
    *,
    bits: int,
    less: int = 1,
) -> Quantized | None:
    """The matrix as it is packed, columns put together by their group; see `dequantize` for the tensors.

    None where that does not describe it: groups are not all of one size.
    """
    groups, outputs = scales.shape
    inputs = g_idx.numel()
    order = torch.argsort(g_idx, stable=True)
    columns = torch.arange(inputs, device=order.device)
    if not torch.equal(g_idx[order], (columns * groups // inputs).to(g_idx.dtype)):
        return None
    # A field is a byte or half of one, the lower one first.
    parts = qweight.t().contiguous().view(torch.uint8)
    if bits == 4:
        parts = torch.stack((parts & 15, parts >> 4), dim=-1).view(outputs, inputs)
    middle = 1 << (bits - 1)
    integers = (parts - middle).view(torch.int8)
    shifts = (middle - less - fields(qzeros, bits)).t().float()
    in_order = torch.equal(order, columns)
    return Quantized(
        integers=integers if in_order else integers[:, order],
        scales=scales.t().float().contiguous(),
        bits=bits,
        order=None if in_order else order,
        shifts=shifts.contiguous() if shifts.any() else None,
    )
