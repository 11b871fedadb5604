"""Products with quantized matrices on a CPU, compiled by numba at load, in a second or two."""

import functools
from typing import Any

import numba
import numpy as np
import torch

from pangu_server.backends.torch.kernels.spreading import spread
from pangu_server.backends.torch.kernels.vectors import BLOCK, MAX_INTEGER, SUPPORTED, dot_products
from pangu_server.backends.torch.quantized import Quantized

TILE_ROWS = (4, 1)  # rows of activations that meet a row of the matrix in one pass
OUTPUTS = 64  # of the matrix's rows, for which all activations pass: they stay in the processor's cache
SPREAD_OUTPUTS = 256  # a thread's share at least


class CpuLinear:
    """A packed matrix and what multiplies it: x (rows, inputs) float32 -> (rows, outputs) float32.

    Activations are rounded to 16 bits a block of 64, which is finer than bfloat16 and exact to some 1e-5 of a block's
    largest. A row's result does not depend on its company.
    """

    def __init__(self, weight: Quantized, bias: torch.Tensor | None, threads: int) -> None:
        self.outputs, self.inputs = weight.integers.shape
        self._order = weight.order
        self._weights = _arena.placed(_packed(weight.integers, weight.bits).numpy())
        self._scales = weight.scales.float().contiguous().numpy()
        self._bias = np.zeros(self.outputs, np.float32) if bias is None else bias.float().numpy()
        self._group = weight.group
        self.name = f"numba int16 x int{weight.bits}"
        self._multiply = spread(_multiplier(weight.bits, threads > 1), threads)

    @staticmethod
    def supports(weight: Quantized) -> bool:
        """Whether this processor and this matrix are what the kernel is for."""
        return SUPPORTED and weight.integers.shape[1] % BLOCK == 0 and weight.group % BLOCK == 0

    @property
    def nbytes(self) -> int:
        """Memory of the matrix."""
        return int(self._weights.nbytes + self._scales.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._order is not None:
            x = x.index_select(1, self._order)
        out = torch.empty((len(x), self.outputs))
        self._multiply(x.numpy(), self._weights, self._scales, self._bias, self._group, out.numpy())
        return out


class _Arena:
    """Memory for matrices in large pieces, which NumPy asks the system to hold in huge pages: a matrix is read from one
    end to the other at each token, and with pages of 4 KiB a fifth of the time would go to finding them."""

    PIECE_BYTES = 64 << 20

    def __init__(self) -> None:
        self._piece, self._used = np.empty(0, np.int8), 0

    def placed(self, matrix: Any) -> Any:
        """A copy of an int8 `matrix`; a piece is freed with the last of its matrices."""
        if self._used + matrix.size > len(self._piece):
            self._piece, self._used = np.empty(max(self.PIECE_BYTES, matrix.size), np.int8), 0
        copy = self._piece[self._used : self._used + matrix.size].reshape(matrix.shape)
        copy[:] = matrix
        self._used += -(-matrix.size // 64) * 64
        return copy


_arena = _Arena()


def _packed(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """(outputs, bytes): int8 as it is; of 4 bits each block's first half in low halves, the other in high ones."""
    if bits == 8:
        return integers.contiguous()
    fields = (integers.to(torch.int16) + 8).to(torch.uint8).view(len(integers), -1, 2, BLOCK // 2)
    return (fields[:, :, 0] | fields[:, :, 1] << 4).reshape(len(integers), -1).view(torch.int8).contiguous()


@numba.njit(nogil=True, cache=True)
def rounded(x: Any) -> Any:
    """x (rows, inputs) float32 as int16 and their scales (rows, inputs / BLOCK)."""
    rows, inputs = x.shape
    integers = np.empty((rows, inputs), np.int16)
    scales = np.empty((rows, inputs // BLOCK), np.float32)
    for row in range(rows):
        for block in range(inputs // BLOCK):
            part = x[row, block * BLOCK : (block + 1) * BLOCK]
            most = np.float32(0)
            for i in range(BLOCK):
                most = max(most, abs(part[i]))
            scales[row, block] = most / np.float32(MAX_INTEGER)
            factor = np.float32(MAX_INTEGER) / most if most > 0 else np.float32(0)
            target = integers[row, block * BLOCK : (block + 1) * BLOCK]
            for i in range(BLOCK):
                target[i] = np.int16(np.rint(part[i] * factor))
    return integers, scales


@functools.cache
def _multiplier(bits: int, parallel: bool) -> Any:
    """The compiled product for matrices of `bits` bits."""
    many, one = (dot_products(rows, bits) for rows in TILE_ROWS)
    tile = TILE_ROWS[0]

    @numba.njit(nogil=True)
    def span(
        x: Any,
        x_scales: Any,
        weights: Any,
        scales: Any,
        bias: Any,
        group: Any,
        out: Any,
        first: Any,
        last: Any,
    ) -> None:
        rows = x.shape[0]
        for start in range(first, last, OUTPUTS):
            stop = min(last, start + OUTPUTS)
            whole = rows - rows % tile
            for row in range(0, whole, tile):
                for n in range(start, stop):
                    sums = many(weights, x, x_scales, scales, n, row, group)
                    for i in range(tile):
                        out[row + i, n] = sums[i] + bias[n]
            for row in range(whole, rows):
                for n in range(start, stop):
                    out[row, n] = one(weights, x, x_scales, scales, n, row, group)[0] + bias[n]

    @numba.njit(nogil=True, parallel=parallel)  # else `prange` is `range`
    def multiply(x: Any, weights: Any, scales: Any, bias: Any, group: Any, out: Any) -> None:
        outputs = weights.shape[0]
        integers, x_scales = rounded(x)
        for part in numba.prange((outputs + SPREAD_OUTPUTS - 1) // SPREAD_OUTPUTS):
            first = part * SPREAD_OUTPUTS
            last = min(outputs, first + SPREAD_OUTPUTS)
            span(integers, x_scales, weights, scales, bias, group, out, first, last)

    return multiply
