"""A quantized matrix as every artifact's is read, before a kernel packs it for itself."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """weight[o, order[i]] = scales[o, i // (inputs / groups)] * integers[o, i]: symmetric, no zero points.

    CTranslate2's int8 has one group, that is, a scale a row; GPTQ has groups of 32 to 128 inputs, or one.
    """

    integers: torch.Tensor  # int8 (outputs, inputs), within [-2**(bits-1), 2**(bits-1) - 1]
    scales: torch.Tensor  # float32 (outputs, groups); each for as many consecutive inputs
    bits: int  # 8 or 4: what `integers` needs
    order: torch.Tensor | None = None  # int64 (inputs,): where each column belongs, for GPTQ's act-order

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return int(self.integers.shape[1] // self.scales.shape[1])

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The matrix (outputs, inputs) itself: what a kernel must agree with."""
        outputs, groups = self.scales.shape
        parts = self.integers.view(outputs, groups, -1) * self.scales[:, :, None]
        matrix = parts.view(outputs, -1)
        if self.order is not None:
            matrix = torch.empty_like(matrix).index_copy_(1, self.order, matrix)
        return matrix.to(dtype)
