"""Products of quantized matrices as vector instructions, for numba: what its own vectorizer does not find.

Activations are 16-bit integers with a scale for each `BLOCK` of them, weights 8- or 4-bit integers: x86's `vpmaddwd`
multiplies pairs and adds them, exactly. A lane of a register is an output, so nothing is summed across a register; a
block's sums become floats and are scaled. That reads a matrix at the speed of memory for one row of activations, and
for many it does up to twice the work of single-precision arithmetic.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 64  # inputs that share a scale of the activations: a divisor of every width that models have
MAX_INTEGER = 32767  # of an activation: a lane's 64 products of 32767 * 128 stay below 2**31

_F32, _I8, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FEATURES = binding.get_host_cpu_features()
WIDE = bool(_FEATURES.get("avx512bw"))
SUPPORTED = WIDE or bool(_FEATURES.get("avx2") and _FEATURES.get("fma"))
LANES = 16 if WIDE else 8  # 32-bit numbers in a register
VECTORS = 2  # of outputs in a tile: with four rows of activations all sums fit into AVX2's 16 registers
TILE = LANES * VECTORS  # outputs that lie together in a packed matrix
AHEAD_BYTES = (
    2048  # of the matrix, which is fetched this far ahead: by itself the processor stops at each 4 KiB
)
_LINE_BYTES = 64
_PAIRS = 2  # of inputs to an iteration: what a byte of 4-bit fields holds


def splat(builder: Any, value: Any, kind: Any) -> Any:
    """A vector of type `kind` of this number, for LLVM."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
    )


def tile_product(rows: int, bits: int, *, grouped: bool, shifted: bool) -> Any:
    """An intrinsic: (weights, x, x_scales, x_sums, scales, shifts, bias, tile, row, group, out) -> None.

    Fills out[row : row + rows, tile * TILE : (tile + 1) * TILE]. weights int8 (tiles, bytes), packed as `cpu_linear`
    does it; x int16 (all rows, inputs), x_scales float32 (all rows, inputs / BLOCK), scales float32 (tiles, groups,
    TILE): `group` inputs share one, a multiple of BLOCK; not `grouped`: all do. bias float32 (tiles, TILE), out
    float32 (all rows, tiles * TILE). `shifted`: shifts int32, as scales, are added to the weights, and x_sums int32, as
    x_scales, has the sum of each block of x; else both are whatever has these types. A row's numbers do not depend on
    `rows`.
    """

    @intrinsic
    def product(
        typing: Any,
        weights: Any,
        x: Any,
        x_scales: Any,
        x_sums: Any,
        scales: Any,
        shifts: Any,
        bias: Any,
        tile: Any,
        row: Any,
        group: Any,
        out: Any,
    ) -> Any:
        signature = types.void(weights, x, x_scales, x_sums, scales, shifts, bias, tile, row, group, out)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = _Code(context, builder, signature, arguments, rows, bits)
            code.generate(grouped=grouped, shifted=shifted)
            return context.get_dummy_value()

        return signature, generate

    return product


class _Code:
    """Writes the loops: blocks of inputs outside, pairs of inputs inside."""

    def __init__(
        self, context: Any, builder: Any, signature: Any, arguments: Any, rows: int, bits: int
    ) -> None:
        self.builder, self.bits = builder, bits
        tile, row, self.group = arguments[7:10]

        def rows_of(index: int, first: Any, count: int = 1) -> tuple[Any, list[Any]]:
            """The width of array `index`, which counts all but the first dimension, and pointers to rows of it."""
            array = context.make_array(signature.args[index])(context, builder, arguments[index])
            width = builder.extract_value(array.shape, 1)
            for dimension in range(2, signature.args[index].ndim):
                width = builder.mul(width, builder.extract_value(array.shape, dimension))
            places = [builder.mul(builder.add(first, _I64(i)), width) for i in range(count)]
            return width, [builder.gep(array.data, [place]) for place in places]

        _, [self.weights] = rows_of(0, tile)
        self.inputs, self.x = rows_of(1, row, rows)
        _, self.x_scales = rows_of(2, row, rows)
        _, self.x_sums = rows_of(3, row, rows)
        _, [self.scales] = rows_of(4, tile)
        _, [self.shifts] = rows_of(5, tile)
        _, [self.bias] = rows_of(6, tile)
        _, outs = rows_of(10, row, rows)
        self.out = [builder.gep(out, [builder.mul(tile, _I64(TILE))]) for out in outs]
        self.floats = ir.VectorType(_F32, LANES)
        self.integers = ir.VectorType(_I32, LANES)
        self.words = ir.VectorType(_I16, 2 * LANES)
        self.octets = ir.VectorType(_I8, 2 * LANES)
        self.multiply = self._function(
            "llvm.x86.avx512.pmaddw.d.512" if WIDE else "llvm.x86.avx2.pmadd.wd",
            self.integers,
            [self.words, self.words],
        )
        self.multiply_add = self._function(f"llvm.fma.v{LANES}f32", self.floats, [self.floats] * 3)
        self.cells = [(i, j) for i in range(rows) for j in range(VECTORS)]

    def generate(self, *, grouped: bool, shifted: bool) -> None:
        """The whole of it."""
        builder = self.builder
        totals = [cgutils.alloca_once(builder, self.floats) for _ in self.cells]
        sums = [cgutils.alloca_once(builder, self.integers) for _ in self.cells]
        for total in totals:
            builder.store(ir.Constant(self.floats, None), total)
        with cgutils.for_range(builder, builder.udiv(self.inputs, _I64(BLOCK)), intp=_I64) as blocks:
            first = builder.mul(blocks.index, _I64(BLOCK))
            shifts = self._of_group(self.shifts, first, self.integers, grouped) if shifted else None
            for at, (i, j) in enumerate(self.cells):
                start = ir.Constant(self.integers, None)
                if shifts is not None:  # the block's products with these; exact, as all up to the scales is
                    x_sum = builder.load(builder.gep(self.x_sums[i], [blocks.index]))
                    start = builder.mul(shifts[j], splat(builder, x_sum, self.integers))
                builder.store(start, sums[at])
            with cgutils.for_range(builder, _I64(BLOCK // 2 // _PAIRS), intp=_I64) as steps:
                self._pairs(builder.add(first, builder.mul(steps.index, _I64(2 * _PAIRS))), sums)
            scales = self._of_group(self.scales, first, self.floats) if grouped else None
            for at, (i, j) in enumerate(self.cells):
                value = builder.sitofp(builder.load(sums[at]), self.floats)
                if scales is not None:
                    value = builder.fmul(value, scales[j])
                x_scale = splat(
                    builder, builder.load(builder.gep(self.x_scales[i], [blocks.index])), self.floats
                )
                builder.store(
                    builder.call(self.multiply_add, [value, x_scale, builder.load(totals[at])]), totals[at]
                )
        scales = None if grouped else self._of_group(self.scales, _I64(0), self.floats, grouped=False)
        for at, (i, j) in enumerate(self.cells):
            total, bias = builder.load(totals[at]), self._load(self.bias, _I64(j * LANES), self.floats)
            if scales is not None:
                value = builder.call(self.multiply_add, [total, scales[j], bias])
            else:
                value = builder.fadd(total, bias)
            place = builder.gep(self.out[i], [_I64(j * LANES)])
            builder.store(value, builder.bitcast(place, self.floats.as_pointer()), align=4)

    def _pairs(self, first: Any, sums: list[Any]) -> None:
        """Add some pairs of inputs, from input `first` on."""
        builder = self.builder
        pair_bytes = TILE * 2 * self.bits // 8
        start = builder.mul(builder.udiv(first, _I64(2)), _I64(pair_bytes))
        fetch = self._function("llvm.prefetch.p0", ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        for line in range(0, _PAIRS * pair_bytes, _LINE_BYTES):
            pointer = builder.gep(self.weights, [builder.add(start, _I64(AHEAD_BYTES + line))])
            builder.call(fetch, [pointer, _I32(0), _I32(3), _I32(1)])  # to read, keep near, data
        for pair in range(_PAIRS):
            weights = [self._weights(start, pair, j) for j in range(VECTORS)]
            for i, row in enumerate(self.x):
                place = builder.gep(row, [builder.add(first, _I64(2 * pair))])
                both = builder.load(builder.bitcast(place, _I32.as_pointer()), align=4)
                x = builder.bitcast(splat(builder, both, self.integers), self.words)
                for j in range(VECTORS):
                    target = sums[i * VECTORS + j]
                    product = builder.call(self.multiply, [weights[j], x])
                    builder.store(builder.add(builder.load(target), product), target)

    def _weights(self, start: Any, pair: int, vector: int) -> Any:
        """16-bit integers of a pair of inputs, for each output of a vector."""
        builder = self.builder
        if self.bits == 8:
            offset = (pair * VECTORS + vector) * 2 * LANES
            return builder.sext(
                self._load(self.weights, builder.add(start, _I64(offset)), self.octets), self.words
            )
        # Low halves of bytes are one pair of inputs, high halves the next.
        offset = (pair // 2 * VECTORS + vector) * 2 * LANES
        both = self._load(self.weights, builder.add(start, _I64(offset)), self.octets)
        both = builder.sext(both, self.words)
        if pair % 2:
            return builder.ashr(both, self._constant(4))
        return builder.ashr(builder.shl(both, self._constant(12)), self._constant(12))

    def _of_group(self, numbers: Any, first: Any, kind: Any, grouped: bool = True) -> list[Any]:
        """The tile's numbers for the group of input `first`."""
        group = self.builder.udiv(first, self.group) if grouped else _I64(0)
        place = self.builder.mul(group, _I64(TILE))
        return [self._load(numbers, self.builder.add(place, _I64(j * LANES)), kind) for j in range(VECTORS)]

    def _function(self, name: str, result: Any, arguments: list[Any]) -> Any:
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, arguments), name)

    def _constant(self, value: int) -> Any:
        return ir.Constant(self.words, [_I16(value)] * 2 * LANES)

    def _load(self, pointer: Any, index: Any, kind: Any) -> Any:
        place = self.builder.gep(pointer, [index])
        return self.builder.load(self.builder.bitcast(place, kind.as_pointer()), align=1)
