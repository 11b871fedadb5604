"""The weights of a GPTQ artifact in AutoGPTQ's first format, its packed matrices as integers with a scale a group."""

from collections.abc import Callable
from functools import partial

import torch

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_convert.gptq_weights import PACKED_TENSORS, dequantize
from pangu_server.backends.torch.parameters import Value, Weights, matched
from pangu_server.backends.torch.quantized import Quantized
from pangu_server.backends.torch.safetensors_weights import checkpoint_config, stored_tensors
from pangu_training.stage.checkpoint import read_json
from pangu_training.stage.errors import CheckpointError

QUANTIZE_CONFIG = "quantize_config.json"
SUFFIXES = tuple(f".{part}" for part in PACKED_TENSORS)
BITS = (4, 8)


def open_gptq(artifact: Artifact, device: str) -> Weights:
    """The weights of a GPTQ artifact; as `open_weights`. Matrices with zero points of their own become plain ones."""
    require_first_format(artifact)
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
        readers[f"{layer}.weight"] = partial(_read, artifact, layer, parts, unpacked)
    return matched(artifact, config, {**tensors, **readers}, unpacked)


def require_first_format(artifact: Artifact) -> None:
    """Raise `ArtifactError` unless zero points are stored less one, as in AutoGPTQ's first format."""
    file = artifact.path / QUANTIZE_CONFIG
    try:
        format = read_json(file).get("checkpoint_format", "gptq")
    except (OSError, CheckpointError) as error:
        raise ArtifactError(f"{file} is damaged ({error}): convert the checkpoint again") from None
    if format != "gptq":
        raise ArtifactError(
            f"{file} names the format {format}, which is not served: convert the checkpoint again"
        )


def _read(
    artifact: Artifact, layer: str, readers: dict[str, Callable[[], torch.Tensor]], unpacked: list[str]
) -> Value:
    parts = {name: read() for name, read in readers.items()}
    inputs = parts["g_idx"].numel()
    bits = 32 * parts["qweight"].shape[0] // max(inputs, 1)
    if not _fit(parts, bits, inputs):
        raise ArtifactError(
            f"the packed tensors of {layer} in {artifact.path} do not fit together as 4 or 8 bits: convert the "
            "checkpoint again"
        )
    quantized = unpack(**parts, bits=bits)
    if quantized is None:
        unpacked.append(f"{layer}.weight")
        return dequantize(**parts, bits=bits)
    return quantized


def _fit(parts: dict[str, torch.Tensor], bits: int, inputs: int) -> bool:
    qweight, qzeros, scales, g_idx = (parts[name] for name in PACKED_TENSORS)
    groups, outputs = scales.shape
    return (
        bits in BITS
        and qweight.dtype == qzeros.dtype == torch.int32
        and tuple(qweight.shape) == (inputs * bits // 32, outputs)
        and tuple(qzeros.shape) == (groups, outputs * bits // 32)
        and 0 <= int(g_idx.min()) <= int(g_idx.max()) < groups
    )


def unpack(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor, *, bits: int
) -> Quantized | None:
    """The matrix as it is packed, columns put together by their group; see `dequantize` for the tensors.

    None where that does not describe it: zero points are not all in the middle, or groups not all of one size.
    """
    groups, outputs = scales.shape
    inputs = g_idx.numel()
    middle = (1 << (bits - 1)) - 1  # of each field, less one
    if not (qzeros == sum(middle << shift for shift in range(0, 32, bits))).all():
        return None
    order = torch.argsort(g_idx, stable=True)
    columns = torch.arange(inputs, device=order.device)
    if not torch.equal(g_idx[order], (columns * groups // inputs).to(g_idx.dtype)):
        return None
    # A field is a byte or half of one, the lower one first.
    fields = qweight.t().contiguous().view(torch.uint8)
    if bits == 4:
        fields = torch.stack((fields & 15, fields >> 4), dim=-1).view(outputs, inputs)
    integers = (fields - (middle + 1)).view(torch.int8)
    in_order = torch.equal(order, columns)
    return Quantized(
        integers=integers if in_order else integers[:, order],
        scales=scales.t().float().contiguous(),
        bits=bits,
        order=None if in_order else order,
    )
