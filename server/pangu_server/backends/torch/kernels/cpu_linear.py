"""Products with quantized matrices on a CPU, compiled by numba at load, in a second or two."""

import functools
from typing import Any

import numba
import numpy as np
import torch

from pangu_server.backends.torch.kernels.spreading import spread
from pangu_server.backends.torch.kernels.vectors import BLOCK, MAX_INTEGER, SUPPORTED, TILE, tile_product
from pangu_server.backends.torch.quantized import Quantized

SPREAD_TILES = 16  # a thread's share at least


class CpuLinear:
    """A packed matrix and what multiplies it: x (rows, inputs) float32 -> (rows, outputs) float32.

    Activations are rounded to 16 bits a block of 64, which is finer than bfloat16 and exact to some 1e-5 of a block's
    largest. A row's result does not depend on its company.
    """

    def __init__(self, weight: Quantized, bias: torch.Tensor | None, threads: int) -> None:
        self.outputs = len(weight.integers)
        self._order = weight.order
        self._weights = _arena.placed(_packed(weight.integers, weight.bits).numpy())
        self._scales = _tiles(weight.scales.float()).transpose(1, 2).contiguous().numpy()
        self._bias = _tiles(torch.zeros(self.outputs) if bias is None else bias.float()).numpy()
        shifts = torch.zeros(1, 1) if weight.shifts is None else weight.shifts
        self._shifts = _tiles(shifts.int()).transpose(1, 2).contiguous().numpy()
        self._group = weight.group
        self.name = f"numba int16 x int{weight.bits}"
        grouped, shifted = weight.scales.shape[1] > 1, weight.shifts is not None
        self._multiply = spread(_multiplier(weight.bits, grouped, shifted, threads > 1), threads)

    @staticmethod
    def supports(weight: Quantized) -> bool:
        """Whether this processor and this matrix are what the kernel is for."""
        return SUPPORTED and weight.integers.shape[1] % BLOCK == 0 and weight.group % BLOCK == 0

    @property
    def nbytes(self) -> int:
        """Memory of the matrix."""
        return int(self._weights.nbytes + self._scales.nbytes + self._shifts.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._order is not None:
            x = x.index_select(1, self._order)
        out = torch.empty((len(x), self._bias.size))
        matrix = (self._weights, self._scales, self._shifts, self._bias, self._group)
        self._multiply(x.numpy(), *matrix, out.numpy())
        return out[:, : self.outputs]


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


def _tiles(rows: torch.Tensor) -> torch.Tensor:
    """(outputs, ...) as (tiles, TILE, ...), with zeros at the end."""
    missing = -len(rows) % TILE
    return torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))]).unflatten(0, (-1, TILE))


def _packed(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """(tiles, bytes): a pair of inputs of each output of a tile, then the next pair.

    In 4 bits low halves of bytes are a pair of inputs, high halves the next pair.
    """
    pairs = _tiles(integers).unflatten(2, (-1, 2)).transpose(1, 2)  # (tiles, inputs / 2, TILE, 2)
    if bits == 4:
        pairs = (pairs[:, 0::2] & 15) | pairs[:, 1::2] << 4
    return pairs.flatten(1).contiguous()


@numba.njit(nogil=True, cache=True)
def rounded(x: Any) -> Any:
    """x (rows, inputs) float32 as int16, their scales (rows, inputs / BLOCK), and the sum of each block of integers."""
    rows, inputs = x.shape
    integers = np.empty((rows, inputs), np.int16)
    scales = np.empty((rows, inputs // BLOCK), np.float32)
    sums = np.empty((rows, inputs // BLOCK), np.int32)
    for row in range(rows):
        for block in range(inputs // BLOCK):
            part = x[row, block * BLOCK : (block + 1) * BLOCK]
            most = np.float32(0)
            for i in range(BLOCK):
                most = max(most, abs(part[i]))
            scales[row, block] = most / np.float32(MAX_INTEGER)
            factor = np.float32(MAX_INTEGER) / most if most > 0 else np.float32(0)
            target = integers[row, block * BLOCK : (block + 1) * BLOCK]
            total = np.int32(0)
            for i in range(BLOCK):
                target[i] = np.int16(np.rint(part[i] * factor))
                total += target[i]
            sums[row, block] = total
    return integers, scales, sums


@functools.cache
def _multiplier(bits: int, grouped: bool, shifted: bool, parallel: bool) -> Any:
    """The compiled product for matrices of `bits` bits, with a scale for each group of inputs or for each output."""
    four, two, one = (tile_product(rows, bits, grouped=grouped, shifted=shifted) for rows in (4, 2, 1))

    @numba.njit(nogil=True)
    def of_tile(
        tile: Any,
        x: Any,
        x_scales: Any,
        x_sums: Any,
        weights: Any,
        scales: Any,
        shifts: Any,
        bias: Any,
        group: Any,
        out: Any,
    ) -> None:
        rows = len(x)
        for row in range(0, rows - 3, 4):
            four(weights, x, x_scales, x_sums, scales, shifts, bias, tile, row, group, out)
        if rows % 4 >= 2:
            two(weights, x, x_scales, x_sums, scales, shifts, bias, tile, rows // 4 * 4, group, out)
        if rows % 2:
            one(weights, x, x_scales, x_sums, scales, shifts, bias, tile, rows - 1, group, out)

    @numba.njit(nogil=True, parallel=parallel)  # else `prange` is `range`
    def multiply(x: Any, weights: Any, scales: Any, shifts: Any, bias: Any, group: Any, out: Any) -> None:
        integers, x_scales, x_sums = rounded(x)
        tiles = len(weights)
        for part in numba.prange((tiles + SPREAD_TILES - 1) // SPREAD_TILES):
            for tile in range(part * SPREAD_TILES, min(tiles, (part + 1) * SPREAD_TILES)):
                of_tile(tile, integers, x_scales, x_sums, weights, scales, shifts, bias, group, out)

    return multiply
