"""The weights of a GPTQ artifact unpacked into plain matrices: the same numbers in an unquantized model.

Needs no gptqmodel. For measuring a quantization apart from a kernel, and for serving where no kernel is fast.
"""

from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_training.stage.checkpoint import read_json

PACKED_TENSORS = ("qweight", "qzeros", "scales", "g_idx")


def load_dequantized(artifact: Artifact, dtype: torch.dtype) -> Any:
    """The model with plain matrices of `dtype`; needs no gptqmodel."""
    quantization = read_json(artifact.path / "quantize_config.json")
    bits = int(quantization["bits"])
    tensors: dict[str, torch.Tensor] = {}
    for name in artifact.manifest.weight_files:
        tensors |= load_file(artifact.path / name)
    for layer in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        packed = [tensors.pop(f"{layer}.{part}") for part in PACKED_TENSORS]
        tensors[f"{layer}.weight"] = dequantize(*packed, bits=bits).to(dtype)
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


def dequantize(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor, *, bits: int
) -> torch.Tensor:
    """The matrix (outputs, inputs) in float32 of a layer in AutoGPTQ's first format.

    `qweight` packs along the inputs, `qzeros` along the outputs and holds the zero points less one.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=qweight.device)
    mask = (1 << bits) - 1
    weights = ((qweight[:, None, :] >> shifts[None, :, None]) & mask).reshape(-1, qweight.shape[1])
    zeros = ((qzeros[:, :, None] >> shifts) & mask).reshape(qzeros.shape[0], -1) + 1
    groups = g_idx.long()
    return (scales.float()[groups] * (weights - zeros[groups])).t().contiguous()
