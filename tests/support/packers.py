"""Quantized folders as other programs write them, packed here field by field, and the same model with plain matrices.

The layouts are those of AutoGPTQ's and AutoAWQ's linear layers. Rounding is to the nearest: it shows parity, never
quality.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from support.damage import WEIGHTS, Tensors

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How to quantize, and what the folder says of it."""

    method: Literal["gptq", "gptq_v2", "awq"] = "gptq"
    bits: int = 4
    group_size: int = 64
    symmetric: bool = True
    act_order: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """`quantization_config`, as the programs write it."""
        if self.method == "awq":
            return {
                "quant_method": "awq",
                "bits": self.bits,
                "group_size": self.group_size,
                "version": "gemm",
                "zero_point": True,
                "modules_to_not_convert": None,
            }
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.symmetric,
            "desc_act": self.act_order,
            "damp_percent": 0.01,
            "true_sequential": True,
            **({"checkpoint_format": "gptq_v2"} if self.method == "gptq_v2" else {}),
        }


def words(numbers: Any, bits: int) -> torch.Tensor:
    """(rows, n) as int32 (rows, n * bits / 32), the first in the lowest bits."""
    rows, count = numbers.shape
    packed = np.zeros((rows, count * bits // 32), np.uint32)
    for i in range(count):
        packed[:, i * bits // 32] |= numbers[:, i].astype(np.uint32) << np.uint32(i * bits % 32)
    return torch.from_numpy(packed.view(np.int32).copy())


def interleaved(numbers: Any) -> Any:
    """AWQ's order of eight neighbours."""
    return numbers.reshape(len(numbers), -1, 8)[:, :, AWQ_ORDER].reshape(len(numbers), -1)


def packed_matrix(weight: torch.Tensor, packing: Packing) -> tuple[Tensors, torch.Tensor]:
    """The parts that are stored of a matrix (outputs, inputs), and the matrix that they are, in float64."""
    matrix = weight.double().numpy()
    outputs, inputs = matrix.shape
    size = inputs if packing.group_size == -1 else packing.group_size
    of_group = np.arange(inputs) // size
    if packing.act_order:
        of_group = np.random.default_rng(inputs).permutation(of_group)
    most, groups = 2**packing.bits - 1, -(-inputs // size)
    scales, zeros = np.zeros((groups, outputs), np.float16), np.zeros((groups, outputs), np.int64)
    integers = np.zeros((inputs, outputs), np.int64)
    for group in range(groups):
        part = matrix[:, of_group == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if packing.symmetric:
            high = np.maximum(high, -low)
            low = -high
        scale = ((high - low) / most).astype(np.float16)
        zero = np.full(outputs, (most + 1) // 2) if packing.symmetric else np.rint(-low / scale)
        scales[group], zeros[group] = scale, np.clip(zero, packing.method == "gptq", most)
        rounded = np.rint(part / scale[:, None].astype(float)) + zeros[group][:, None]
        integers[of_group == group] = np.clip(rounded, 0, most).T
    dense = scales.astype(float)[of_group] * (integers - zeros[of_group])
    parts = {"scales": torch.from_numpy(scales)}
    if packing.method == "awq":
        parts |= {
            "qweight": words(interleaved(integers), 4),
            "qzeros": words(interleaved(zeros), 4),
        }
    else:
        parts |= {
            "qweight": words(integers.T, packing.bits).t().contiguous(),
            "qzeros": words(zeros - (packing.method == "gptq"), packing.bits),
            "g_idx": torch.from_numpy(of_group.astype(np.int32)),
        }
    return parts, torch.from_numpy(dense.T.copy())


def is_packed(name: str, tensor: torch.Tensor) -> bool:
    return tensor.dim() == 2 and (".layers." in name or ".h." in name)


def save_packed(
    source: Path, folder: Path, packing: Packing, others: dict[str, Packing] | None = None
) -> Path:
    """The checkpoint `source` quantized into `folder`; next to it `folder`-plain, the same model unquantized.

    `others`: packings of single layers, by name.
    """
    plain = folder.with_name(f"{folder.name}-plain")
    for target in (folder, plain):
        shutil.copytree(source, target)
    stored: Tensors = {}
    matrices: Tensors = {}
    for name, tensor in load_file(source / WEIGHTS).items():
        layer = name.removesuffix(".weight")
        if is_packed(name, tensor) or layer in (others or {}):
            parts, matrix = packed_matrix(tensor, (others or {}).get(layer, packing))
            stored |= {f"{layer}.{part}": value for part, value in parts.items()}
            matrices[name] = matrix.float()
        else:
            stored[name] = tensor.half()
            matrices[name] = tensor.half().float()
    save_file(stored, folder / WEIGHTS, {"format": "pt"})
    save_file(matrices, plain / WEIGHTS, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "dtype": "float16", "quantization_config": packing.config})
    )
    if packing.method != "awq":
        (folder / "quantize_config.json").write_text(json.dumps(packing.config))
    return folder


GPTQ, GPTQ_V2, AWQ = Packing(), Packing(method="gptq_v2"), Packing(method="awq", symmetric=False)
PACKINGS = {
    "gptq": GPTQ,
    "gptq, 8 bits": replace(GPTQ, bits=8),
    "gptq, act-order": replace(GPTQ, act_order=True),
    "gptq, asymmetric": replace(GPTQ, symmetric=False),
    "gptq, rows": replace(GPTQ, group_size=-1),
    "gptq_v2": GPTQ_V2,
    "gptq_v2, asymmetric, act-order": replace(GPTQ_V2, symmetric=False, act_order=True),
    "gptq_v2, asymmetric, 8 bits, rows": replace(GPTQ_V2, symmetric=False, bits=8, group_size=-1),
    "awq": AWQ,
    "awq, 32": replace(AWQ, group_size=32),
    "awq, rows": replace(AWQ, group_size=-1),
}
