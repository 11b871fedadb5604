"""The weights of a GPTQ artifact unpacked into plain matrices: the same numbers in an unquantized model.

Needs no gptqmodel. For measuring a quantization apart from a kernel, and for serving where no kernel is fast.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_training.stage.checkpoint import QUANTIZE_CONFIG, read_json
from pangu_training.stage.errors import CheckpointError

BITS = (4, 8)  # that there are kernels for
PACKED_TENSORS = ("qweight", "qzeros", "scales", "g_idx")
# What zero points are less when they are stored: AutoGPTQ's first format, and GPTQModel's second.
STORED_LESS = {"gptq": 1, "gptq_v2": 0}


def load_dequantized(artifact: Artifact, dtype: torch.dtype) -> Any:
    """The model with plain matrices of `dtype`; needs no gptqmodel."""
    less = stored_less(artifact.path)
    tensors: dict[str, torch.Tensor] = {}
    for name in artifact.manifest.weight_files:
        tensors |= load_file(artifact.path / name)
    for layer in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        packed = [tensors.pop(f"{layer}.{part}") for part in PACKED_TENSORS]
        tensors[f"{layer}.weight"] = dequantize(
            *packed, bits=packed_bits(packed[0], packed[3]), less=less
        ).to(dtype)
    config = AutoConfig.from_pretrained(artifact.path, local_files_only=True, trust_remote_code=False)
    del config.quantization_config
    model_class = getattr(transformers, artifact.manifest.architecture)
    model, found = model_class.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        output_loading_info=True,
        trust_remote_code=False,
    )
    if missing := sorted(found["missing_keys"]):
        raise ArtifactError(f"{artifact.path} has no weights for {', '.join(missing[:3])}: convert it again")
    return model.eval()


def stored_less(folder: Path) -> int:
    """What the zero points of the artifact in `folder` are stored less: a value of `STORED_LESS`.

    Raises:
        ArtifactError: its `quantize_config.json` is damaged or names another format.
    """
    file = folder / QUANTIZE_CONFIG
    try:
        format = read_json(file).get("checkpoint_format", "gptq")
    except (OSError, CheckpointError) as error:
        raise ArtifactError(f"{file} is damaged ({error}): convert the checkpoint again") from None
    if format not in STORED_LESS:
        raise ArtifactError(
            f"{file} names the format {format}, which is not served: convert the checkpoint again"
        )
    return STORED_LESS[format]


def packed_bits(qweight: torch.Tensor, g_idx: torch.Tensor) -> int:
    """Bits of a weight of such a layer."""
    return int(32 * qweight.shape[0] // max(g_idx.numel(), 1))


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers packed into int32 (rows, words), the lowest bits first: int32 (rows, words * 32 / bits)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> shifts) & ((1 << bits) - 1)).flatten(1)


def dequantize(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor,
    *,
    bits: int,
    less: int = 1,
) -> torch.Tensor:
    """The matrix (outputs, inputs) in float32 of a layer in AutoGPTQ's format.

    `qweight` packs along the inputs, `qzeros` along the outputs and holds the zero points, `less` that.
    """
    weights = fields(qweight.t(), bits).t()
    zeros = fields(qzeros, bits) + less
    groups = g_idx.long()
    return (scales.float()[groups] * (weights - zeros[groups])).t().contiguous()
