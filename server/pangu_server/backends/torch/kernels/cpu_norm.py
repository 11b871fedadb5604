"""RMS norm on a CPU in one pass: transformers' is six operations, each of which costs more than its arithmetic."""

from typing import Any

import numba
import numpy as np
import torch
from torch import nn


@numba.njit(nogil=True, fastmath=True, cache=True)
def _normalize(x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    rows, width = x.shape
    for row in range(rows):
        total = np.float32(0)
        for i in range(width):
            total += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
        for i in range(width):
            out[row, i] = weight[i] * (x[row, i] * factor)


class CpuNorm(nn.Module):  # type: ignore[misc]
    """The norm with this weight (width,), in single precision."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._array, self._epsilon = weight.numpy(), np.float32(epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As transformers' norm."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()  # of a joined product a head's rows lie apart
        out = torch.empty_like(rows)
        _normalize(rows.numpy(), self._array, self._epsilon, out.numpy())
        return out.view(x.shape)


def replace_norms(model: Any) -> int:
    """Put `CpuNorm` in the place of each RMS norm of `model` that computes the same; returns how many there are."""
    probe = torch.Generator().manual_seed(0)
    count = 0
    for name, module in list(model.named_modules()):
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if (
            not type(module).__name__.endswith("RMSNorm")
            or weight is None
            or epsilon is None
            or weight.dim() != 1
        ):
            continue
        norm = CpuNorm(weight.detach(), epsilon)
        x = torch.randn((2, len(weight)), generator=probe) * 3
        with torch.inference_mode():
            same = torch.allclose(norm(x), module(x), rtol=1e-5, atol=1e-6)
        if same:  # others have a factor of their own, as Gemma's
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, norm)
            count += 1
    return count
