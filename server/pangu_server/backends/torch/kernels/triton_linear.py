"""Products of 16-bit activations with packed weights of 8 and 4 bits, for up to 64 rows; more rows are for cuBLAS.

* Layout: see packing.py. One shift and one mask of all words give the weights of consecutive inputs, two an
  instruction, as pairs that the tensor cores take.
* No conversion. A half-precision number whose bits are 0x6400 is 1024, and its last ten bits count in ones; a
  bfloat16 of 0x4300 is 128, and its last seven count. A field in two's complement with its sign flipped is the weight
  plus a constant: one exclusive or puts both in, one subtraction takes the constants out. All of it is exact.
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
from pangu_server.backends.torch.quantized import Quantized

MAX_ROWS = 64
PIECE_BYTES = 64 << 20  # of a matrix that is unpacked for many rows


@triton.jit
def _unpacked(words, FIELD: tl.constexpr, BITS: tl.constexpr, TYPE: tl.constexpr):
    """Field `FIELD` of words (outputs, words) as exact numbers (outputs, 2 * words) of a type of 16 bits."""
    SIGN: tl.constexpr = 1 << (BITS - 1)
    shifted = words >> (FIELD * BITS)
    HALF: tl.constexpr = TYPE.is_fp16()
    if HALF or BITS == 4:
        ZERO: tl.constexpr = ((0x6400 if HALF else 0x4300) + SIGN) * 0x10001
        field = (shifted & (2 * SIGN - 1) * 0x10001) ^ ZERO
        zero = tl.full(words.shape, ZERO, tl.int32)
    else:  # seven bits count in ones; the sign makes 256 of 128
        field = (shifted & 0x7F * 0x10001) | 0x4300 * 0x10001
        zero = (shifted & 0x80 * 0x10001) | 0x4300 * 0x10001
    return (_halves(field, TYPE).to(tl.float32) - _halves(zero, TYPE).to(tl.float32)).to(TYPE)


@triton.jit
def _halves(words, TYPE: tl.constexpr):
    """The two halves of each word as numbers, one after the other. Costs nothing: registers are renamed."""
    pairs = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))
    return tl.reshape(pairs, (words.shape[0], 2 * words.shape[1])).to(TYPE, bitcast=True)


@triton.jit(do_not_specialize=["rows", "blocks", "share"])
def _product(
    x,
    packed,
    scales,
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
            weights = _unpacked(words, index, BITS, x.dtype.element_ty)
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
    out,
    first,
    last,
    outputs,
    inputs,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
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
        if GROUP == 0:
            scale = tl.load(scales + known).to(tl.float32)
        else:
            scale = tl.load(scales + column // GROUP * outputs + known).to(tl.float32)
        numbers = _unpacked(words, index, BITS, out.dtype.element_ty).to(tl.float32) * scale[:, None]
        place = row[:, None].to(tl.int64) * inputs + (column + tl.arange(0, RUN))[None, :]
        tl.store(out + place, numbers.to(out.dtype.element_ty), mask=(first + row < last)[:, None])


@dataclass(slots=True, eq=False)
class TritonLinear:
    """A linear layer whose weights stay packed. Call it with rows (rows, inputs) of `dtype`."""

    packed: torch.Tensor  # int32 (blocks, outputs, words)
    scales: torch.Tensor  # (groups, outputs), half precision where that is exact
    bias: torch.Tensor | None
    order: torch.Tensor | None  # int64 (inputs,): which column of the input each weight meets
    bits: int
    inputs: int
    dtype: torch.dtype
    plan: Plan = field(init=False)  # how it is launched; `tune` sets a better one

    def __post_init__(self) -> None:
        self.plan = default_plan(self.outputs, len(self.packed))

    @property
    def name(self) -> str:
        """What the startup line says."""
        return f"Triton int{self.bits}"

    @property
    def nbytes(self) -> int:
        """Memory of the matrix."""
        return int(self.packed.nbytes + self.scales.nbytes)

    @property
    def outputs(self) -> int:
        """Columns of the result."""
        return int(self.packed.shape[1])

    @property
    def group(self) -> int:
        """Inputs that share a scale; 0 where all of an output's do."""
        return 0 if len(self.scales) == 1 else self.inputs // len(self.scales)

    @property
    def key(self) -> str:
        """What launch shapes are kept under: all that they depend on but the device."""
        words = self.packed.shape[2]
        return f"{self.bits}-{self.outputs}x{self.inputs}-{words}-{self.group}-{self.dtype}"

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
        return TritonLinear(packed, scales, bias, order, weight.bits, inputs, dtype)

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
            out,
            first,
            last,
            self.outputs,
            self.inputs,
            BITS=self.bits,
            WORDS=words,
            GROUP=self.group,
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
