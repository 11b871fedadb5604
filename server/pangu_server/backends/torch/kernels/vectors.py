"""Dot products of quantized rows as vector instructions, for numba: what its own vectorizer does not find.

Activations are 16-bit integers with a scale for each `BLOCK` of them, weights 8- or 4-bit integers: x86's `vpmaddwd`
multiplies pairs and adds them, exactly. That reads a row at the speed of memory, and with several rows of activations
it does twice the work of single-precision arithmetic (Zen 3). A block's sum becomes a float and is scaled.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 64  # inputs that share a scale of the activations: a divisor of every width that models have
MAX_INTEGER = 32767  # of an activation: 64 / 2 pairs of 2 * 32767 * 128 stay below 2**31

_F32, _I8, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FEATURES = binding.get_host_cpu_features()
WIDE = bool(_FEATURES.get("avx512bw"))
SUPPORTED = WIDE or bool(_FEATURES.get("avx2"))
AHEAD_BYTES = (
    2048  # of the matrix, which is fetched this far ahead: by itself the processor stops at each 4 KiB
)
STEP = 32 if WIDE else 16  # 16-bit integers in a register


def dot_products(rows: int, bits: int) -> Any:
    """An intrinsic: (weights, x, x_scales, scales, n, m, group) -> the sums of row n with `rows` rows of x, from m on.

    weights int8 (outputs, bytes), x int16 (rows, inputs), x_scales float32 (rows, inputs / BLOCK), scales float32
    (outputs, groups); `group` inputs share one of these, a multiple of BLOCK.
    """

    @intrinsic
    def products(
        typing: Any, weights: Any, x: Any, x_scales: Any, scales: Any, n: Any, m: Any, group: Any
    ) -> Any:
        signature = types.UniTuple(types.float32, rows)(weights, x, x_scales, scales, n, m, group)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = _Code(context, builder, signature, arguments, rows, bits)
            return context.make_tuple(builder, signature.return_type, code.generate())

        return signature, generate

    return products


class _Code:
    """Writes the loop over the inputs: blocks outside, registers inside."""

    def __init__(
        self, context: Any, builder: Any, signature: Any, arguments: Any, rows: int, bits: int
    ) -> None:
        self.builder, self.rows, self.bits = builder, rows, bits
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:4], arguments[:4], strict=True)
        ]
        n, m, self.group = arguments[4:]
        self.inputs = builder.extract_value(arrays[1].shape, 1)
        self.weight = self._row(arrays[0], n)
        self.x = [self._row(arrays[1], builder.add(m, _I64(i))) for i in range(rows)]
        self.x_scale = [self._row(arrays[2], builder.add(m, _I64(i))) for i in range(rows)]
        self.scale = self._row(arrays[3], n)
        self.floats = ir.VectorType(_F32, STEP // 2)
        self.sums = ir.VectorType(_I32, STEP // 2)
        self.words = ir.VectorType(_I16, STEP)
        name = "llvm.x86.avx512.pmaddw.d.512" if WIDE else "llvm.x86.avx2.pmadd.wd"
        self.multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(self.sums, [self.words, self.words]), name
        )

    def generate(self) -> list[Any]:
        """The sums, as LLVM floats."""
        builder = self.builder
        before = builder.block
        block, done = builder.append_basic_block("block"), builder.append_basic_block("done")
        builder.branch(block)
        builder.position_at_end(block)
        start = builder.phi(_I64)
        start.add_incoming(_I64(0), before)
        totals = [builder.phi(self.floats) for _ in range(self.rows)]
        for total in totals:
            total.add_incoming(ir.Constant(self.floats, None), before)
        integers = [ir.Constant(self.sums, None)] * self.rows
        self._fetch(start)
        for offset in range(0, BLOCK, STEP):  # unrolled: two or four steps
            weights = self._weights(start, offset)
            for i in range(self.rows):
                x = self._load(self.x[i], builder.add(start, _I64(offset)), self.words, 2)
                integers[i] = builder.add(integers[i], builder.call(self.multiply, [weights, x]))
        scale = builder.load(builder.gep(self.scale, [builder.udiv(start, self.group)]))
        at = builder.udiv(start, _I64(BLOCK))
        added = []
        for i in range(self.rows):
            both = builder.fmul(builder.load(builder.gep(self.x_scale[i], [at])), scale)
            product = builder.fmul(builder.sitofp(integers[i], self.floats), self._all(both), flags=["fast"])
            added.append(builder.fadd(product, totals[i], flags=["fast"]))
        following = builder.add(start, _I64(BLOCK))
        start.add_incoming(following, block)
        for total, value in zip(totals, added, strict=True):
            total.add_incoming(value, block)
        builder.cbranch(builder.icmp_signed("<", following, self.inputs), block, done)
        builder.position_at_end(done)
        reduce = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_F32, [_F32, self.floats]),
            f"llvm.vector.reduce.fadd.v{STEP // 2}f32",
        )
        return [builder.call(reduce, [ir.Constant(_F32, 0.0), value], fastmath=("fast",)) for value in added]

    def _fetch(self, start: Any) -> None:
        """Begin to read what the matrix has some blocks behind input `start`; the end of the matrix does not matter."""
        builder = self.builder
        place = start if self.bits == 8 else builder.udiv(start, _I64(2))
        pointer = builder.gep(self.weight, [builder.add(place, _I64(AHEAD_BYTES))])
        arguments = [_I8.as_pointer(), _I32, _I32, _I32]
        fetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), arguments), "llvm.prefetch.p0"
        )
        builder.call(fetch, [pointer, _I32(0), _I32(3), _I32(1)])  # to read, keep near, data

    def _weights(self, start: Any, offset: int) -> Any:
        """The 16-bit integers of inputs `start + offset` on."""
        builder, octets = self.builder, ir.VectorType(_I8, STEP)
        if self.bits == 8:
            return builder.sext(
                self._load(self.weight, builder.add(start, _I64(offset)), octets, 1), self.words
            )
        # A block of 64 inputs is 32 bytes: low halves are the first 32 inputs, high halves the others.
        half = BLOCK // 2
        place = builder.add(builder.udiv(start, _I64(2)), _I64(offset % half))
        both = self._load(self.weight, place, octets, 1)
        field = builder.lshr(both, ir.Constant(octets, [_I8(4)] * STEP)) if offset >= half else both
        field = builder.and_(field, ir.Constant(octets, [_I8(15)] * STEP))
        return builder.sub(builder.zext(field, self.words), ir.Constant(self.words, [_I16(8)] * STEP))

    def _row(self, array: Any, index: Any) -> Any:
        width = self.builder.extract_value(array.shape, 1)
        return self.builder.gep(array.data, [self.builder.mul(index, width)])

    def _load(self, pointer: Any, index: Any, kind: Any, align: int) -> Any:
        place = self.builder.gep(pointer, [index])
        return self.builder.load(self.builder.bitcast(place, kind.as_pointer()), align=align)

    def _all(self, value: Any) -> Any:
        """A vector of this number."""
        undefined, lanes = ir.Constant(self.floats, ir.Undefined), STEP // 2
        first = self.builder.insert_element(undefined, value, _I32(0))
        return self.builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
        )
