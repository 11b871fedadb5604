"""A quantized matrix as every artifact's is read, before a kernel packs it for itself."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """weight[o, order[i]] = scales[o, g] * (integers[o, i] + shifts[o, g]), with g = i // (inputs / groups).

    CTranslate2's int8 has one group, that is, a scale a row; GPTQ has groups of 32 to 128 inputs, or one. Shifts are
    for zero points that are not in the middle.
    """

    integers: torch.Tensor  # int8 (outputs, inputs), within [-2**(bits-1), 2**(bits-1) - 1]
    scales: torch.Tensor  # float32 (outputs, groups); each for as many consecutive inputs
    bits: int  # 8 or 4: what `integers` needs
    order: torch.Tensor | None = None  # int64 (inputs,): where each column belongs, for GPTQ's act-order
    shifts: torch.Tensor | None = None  # float32 (outputs, groups), whole numbers within [-2**bits, 2**bits]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return int(self.integers.shape[1] // self.scales.shape[1])

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The matrix (outputs, inputs) itself: what a kernel must agree with."""
        outputs, groups = self.scales.shape
        integers = self.integers.view(outputs, groups, -1)
        if self.shifts is not None:
            integers = integers + self.shifts[:, :, None]
        matrix = (integers * self.scales[:, :, None]).view(outputs, -1)
        if self.order is not None:
            matrix = torch.empty_like(matrix).index_copy_(1, self.order, matrix)
        return matrix.to(dtype)
