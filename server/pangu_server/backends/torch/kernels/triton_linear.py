"""Products of 16-bit activations with packed weights of 8 and 4 bits, for up to 64 rows; more rows are for cuBLAS.

* Layout: see packing.py. One shift and one mask of all words give the weights of consecutive inputs, two an
  instruction, as pairs that the tensor cores take.
* The weights are the left operand: on Hopper it may come from registers, where they have just been unpacked.
* The scale is applied once a group to the partial product in single precision, or once at all.
* With few outputs there are few programs, so the inputs are split among several, and `_sum_parts` adds them up. The
  split and with it each sum's order belong to the matrix and not to the batch: a row's result is the same in any.
"""

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch.nn.functional import linear
from triton.runtime.errors import OutOfResources

from pangu_server.backends.torch.kernels.launching import Plan, default_plan
from pangu_server.backends.torch.kernels.packing import packed_words, words_of_block
from pangu_server.backends.torch.kernels.products import dot
from pangu_server.backends.torch.kernels.unpacking import unpacked
from pangu_server.backends.torch.quantized import Quantized

MAX_ROWS = 64
PIECE_BYTES = 64 << 20  # of a matrix that is unpacked for many rows


@triton.jit(do_not_specialize=["rows", "blocks", "share"])
def _product(
    x,
    packed,
    scales,
    shifts,
    bias,
    out,
    rows,
    outputs,
    blocks,
    share,
    stride_x,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
    SHIFTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """out (rows, outputs), or with PARTS the sums (split, rows, outputs) of `share` blocks each. GROUP 0: one scale."""
    FIELDS: tl.constexpr = 16 // BITS
    RUN: tl.constexpr = 2 * WORDS  # consecutive inputs of a field
    part = tl.program_id(1)
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    known = tl.minimum(n, outputs - 1)
    m, word, run = tl.arange(0, ROWS), tl.arange(0, WORDS), tl.arange(0, RUN)
    here = (m < rows)[None, :]
    total = tl.zeros((TILE, ROWS), dtype=tl.float32)
    for block in range(part * share, min(blocks, part * share + share)):
        words = tl.load(packed + (block * outputs + known)[:, None] * WORDS + word[None, :])
        of_group = tl.zeros((TILE, ROWS), dtype=tl.float32)
        for index in tl.static_range(FIELDS):
            first = (block * FIELDS + index) * RUN
            weights = unpacked(words, index, BITS, x.dtype.element_ty)
            if SHIFTED:
                shift = tl.load(shifts + (first // GROUP if GROUP else 0) * outputs + known)
                weights = (weights.to(tl.float32) + shift[:, None]).to(weights.dtype)
            activations = tl.load(x + m[None, :] * stride_x + (first + run)[:, None], mask=here, other=0.0)
            if GROUP == 0:
                total = dot(weights, activations, total)
            else:
                of_group = dot(weights, activations, of_group)
                if (index + 1) * RUN % GROUP == 0 or index + 1 == FIELDS:
                    scale = tl.load(scales + first // GROUP * outputs + known).to(tl.float32)
                    total += scale[:, None] * of_group
                    of_group = tl.zeros((TILE, ROWS), dtype=tl.float32)
    if GROUP == 0:
        total *= tl.load(scales + known).to(tl.float32)[:, None]
    if HAS_BIAS and not PARTS:
        total += tl.load(bias + known).to(tl.float32)[:, None]
    place = (part * rows + m)[None, :] * outputs + n[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(n < outputs)[:, None] & here)


@triton.jit(do_not_specialize=["split"])
def _sum_parts(parts, bias, out, count, outputs, split, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """out (count,) of parts (split, count), and the bias."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in range(split):
        total += tl.load(parts + part * count + place, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + place % outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first", "last"])
def _unpack(
    packed,
    scales,
    shifts,
    out,
    first,
    last,
    outputs,
    inputs,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
    SHIFTED: tl.constexpr,
    TILE: tl.constexpr,
):
    """out (last - first, inputs): the scaled weights of outputs `first` to `last`."""
    FIELDS: tl.constexpr = 16 // BITS
    RUN: tl.constexpr = 2 * WORDS
    block = tl.program_id(1)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    known = tl.minimum(first + row, outputs - 1)
    words = tl.load(packed + (block * outputs + known)[:, None] * WORDS + tl.arange(0, WORDS)[None, :])
    for index in tl.static_range(FIELDS):
        column = (block * FIELDS + index) * RUN
        of_group = (column // GROUP if GROUP else 0) * outputs + known
        numbers = unpacked(words, index, BITS, out.dtype.element_ty).to(tl.float32)
        if SHIFTED:
            numbers += tl.load(shifts + of_group)[:, None]
        numbers *= tl.load(scales + of_group).to(tl.float32)[:, None]
        place = row[:, None].to(tl.int64) * inputs + (column + tl.arange(0, RUN))[None, :]
        tl.store(out + place, numbers.to(out.dtype.element_ty), mask=(first + row < last)[:, None])


@dataclass(slots=True, eq=False)
class TritonLinear:
    """A linear layer whose weights stay packed. Call it with rows (rows, inputs) of `dtype`."""

    packed: torch.Tensor  # int32 (blocks, outputs, words)
    scales: torch.Tensor  # (groups, outputs), half precision where that is exact
    shifts: torch.Tensor | None  # float32 (groups, outputs)
    bias: torch.Tensor | None
    order: torch.Tensor | None  # int64 (inputs,): which column of the input each weight meets
    bits: int
    inputs: int
    dtype: torch.dtype
    plan: Plan = field(init=False)  # how it is launched

    def __post_init__(self) -> None:
        self.plan = default_plan(self.outputs, len(self.packed))

    @property
    def name(self) -> str:
        """What the startup line says."""
        return f"Triton int{self.bits}"

    @property
    def nbytes(self) -> int:
        """Memory of the matrix."""
        shifts_bytes = 0 if self.shifts is None else self.shifts.nbytes
        return int(self.packed.nbytes + self.scales.nbytes + shifts_bytes)

    @property
    def outputs(self) -> int:
        """Columns of the result."""
        return int(self.packed.shape[1])

    @property
    def group(self) -> int:
        """Inputs that share a scale; 0 where all of an output's do."""
        return 0 if len(self.scales) == 1 else self.inputs // len(self.scales)

    @staticmethod
    def supports(weight: Quantized) -> bool:
        """Whether `pack` takes this matrix."""
        return words_of_block(weight.integers.shape[1], weight.bits, weight.group) is not None

    @staticmethod
    def pack(weight: Quantized, bias: torch.Tensor | None, dtype: torch.dtype) -> "TritonLinear":
        """Pack a matrix on its own device.

        Raises:
            ValueError: not a matrix that `supports` accepts, or `dtype` is neither float16 nor bfloat16.
        """
        inputs = weight.integers.shape[1]
        words = words_of_block(inputs, weight.bits, weight.group)
        if words is None or dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"no kernel for {inputs} inputs in groups of {weight.group} as {dtype}")
        scales = weight.scales.t().contiguous()
        if len(scales) > 1 and torch.equal(scales.half().float(), scales):
            scales = scales.half()
        order = weight.order
        if order is not None and torch.equal(order, torch.arange(inputs, device=order.device)):
            order = None
        bias = None if bias is None else bias.to(weight.integers.device, dtype)
        packed = packed_words(weight.integers, weight.bits, words)
        shifts = None if weight.shifts is None else weight.shifts.t().contiguous()
        return TritonLinear(packed, scales, shifts, bias, order, weight.bits, inputs, dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (rows, inputs) -> (rows, outputs). Up to 64 rows, a row's result does not depend on the others."""
        if self.order is not None:
            x = x.index_select(1, self.order)
        if len(x) > MAX_ROWS:
            return self._many(x)
        padded = max(16, triton.next_power_of_2(len(x)))
        while True:
            try:
                return self.launch(x, self.plan.split, padded, **self.plan.launches[padded].options())
            except OutOfResources:  # a card with less memory a multiprocessor
                smaller = self.plan.smaller(padded)
                if smaller is None:
                    raise
                self.plan = smaller

    def launch(self, x: torch.Tensor, split: int, padded: int, **options: int) -> torch.Tensor:
        """The product of at most `padded` rows in the order of the packed weights, launched as said."""
        rows, blocks = len(x), len(self.packed)
        x = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty((rows, self.outputs), device=x.device, dtype=self.dtype)
        parts = out if split == 1 else out.new_empty((split, rows, self.outputs), dtype=torch.float32)
        bias = out if self.bias is None else self.bias
        _product[triton.cdiv(self.outputs, options["TILE"]), split](
            x,
            self.packed,
            self.scales,
            self.scales if self.shifts is None else self.shifts,
            bias,
            parts,
            rows,
            self.outputs,
            blocks,
            triton.cdiv(blocks, split),
            x.stride(0),
            BITS=self.bits,
            WORDS=self.packed.shape[2],
            GROUP=self.group,
            SHIFTED=self.shifts is not None,
            HAS_BIAS=self.bias is not None,
            PARTS=split > 1,
            ROWS=padded,
            **options,
        )
        if split > 1:
            _sum_parts[(triton.cdiv(out.numel(), 1024),)](
                parts, bias, out, out.numel(), self.outputs, split, HAS_BIAS=self.bias is not None, BLOCK=1024
            )
        return out

    def dense(self, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Outputs `first` to `last` as (last - first, inputs). With `order`, columns are those of x[:, order]."""
        last = self.outputs if last is None else last
        out = torch.empty((last - first, self.inputs), device=self.packed.device, dtype=self.dtype)
        blocks, _, words = self.packed.shape
        _unpack[triton.cdiv(last - first, 32), blocks](
            self.packed,
            self.scales,
            self.scales if self.shifts is None else self.shifts,
            out,
            first,
            last,
            self.outputs,
            self.inputs,
            BITS=self.bits,
            WORDS=words,
            GROUP=self.group,
            SHIFTED=self.shifts is not None,
            TILE=32,
        )
        return out

    def _many(self, x: torch.Tensor) -> torch.Tensor:
        """The product by cuBLAS, the matrix unpacked piece by piece."""
        piece = max(1, PIECE_BYTES // (2 * self.inputs))
        products = []
        for first in range(0, self.outputs, piece):
            last = min(first + piece, self.outputs)
            bias = None if self.bias is None else self.bias[first:last]
            products.append(linear(x, self.dense(first, last), bias))
        return products[0] if len(products) == 1 else torch.cat(products, 1)
