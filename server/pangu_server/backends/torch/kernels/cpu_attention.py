"""Attention over pages on a CPU, in single precision: for rows of few new tokens, which need no copy of them.

Keys lie in a page by dimension, values by token, so that both are read along what is contiguous.
"""

import functools
import itertools
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pangu_server.backends.torch.kernels.vectors import splat

PAGE_TOKENS = 16
_LANES = 8  # numbers that are multiplied at a time
_F32, _I64 = ir.FloatType(), ir.IntType(64)


class CpuAttention(NamedTuple):
    """Compiled for one head size.

    store(new_keys, new_values, places, keys, values): write keys and values (tokens, kv_heads, head_dim);
    `places` (tokens,) are page * PAGE_TOKENS + offset.

    attend(queries, keys, values, tokens, rows, visible, tables, scale, softcap, window, out): fill `out` (tokens,
    heads, head_dim), as `queries`, at `tokens`: the i-th is of row rows[i] of tables (rows, pages) and sees its first
    visible[i] positions, of them the last `window` (0: all); `softcap` 0: none.

    keys (pages, kv_heads, head_dim, PAGE_TOKENS), values (pages, kv_heads, PAGE_TOKENS, head_dim); all float32.
    """

    store: Any
    attend: Any


@functools.cache
def cpu_attention(head_dim: int, parallel: bool) -> CpuAttention:
    """The kernels for heads of `head_dim`, a multiple of 8."""
    width = 16 if head_dim % 16 == 0 else 8
    scores4, scores2, scores1 = (_multiply(rows, PAGE_TOKENS, head_dim) for rows in (4, 2, 1))
    wide = 64 if head_dim % 64 == 0 else width  # of a single row
    values4, values2, values1 = _multiply(4, width), _multiply(2, width), _multiply(1, wide)

    @numba.njit(nogil=True)
    def score(queries: Any, keys: Any, scores: Any, at: Any) -> None:
        heads = len(queries)
        for head in range(0, heads - 3, 4):
            scores4(queries, head, 0, keys, 0, scores, head, at, head_dim)
        if heads % 4 >= 2:
            head = heads // 4 * 4
            scores2(queries, head, 0, keys, 0, scores, head, at, head_dim)
        if heads % 2:
            scores1(queries, heads - 1, 0, keys, 0, scores, heads - 1, at, head_dim)

    @numba.njit(nogil=True)
    def add_values(scores: Any, at: Any, count: Any, values: Any, out: Any) -> None:
        heads = len(out)
        for d in range(0, head_dim, width):
            for head in range(0, heads - 3, 4):
                values4(scores, head, at, values, d, out, head, d, count)
            if heads % 4 >= 2:
                head = heads // 4 * 4
                values2(scores, head, at, values, d, out, head, d, count)
        if heads % 2:
            for d in range(0, head_dim, wide):
                values1(scores, heads - 1, at, values, d, out, heads - 1, d, count)

    @numba.njit(nogil=True)
    def one(
        queries: Any,
        keys: Any,
        values: Any,
        kv_head: Any,
        pages: Any,
        first: Any,
        last: Any,
        scale: Any,
        softcap: Any,
        out: Any,
    ) -> None:
        """All heads of a token that share keys and values, so that these are read once."""
        start, stop = first // PAGE_TOKENS, (last + PAGE_TOKENS - 1) // PAGE_TOKENS
        heads = len(queries)
        scores = np.zeros((heads, stop * PAGE_TOKENS), np.float32)
        for at in range(start, stop):
            score(queries, keys[pages[at], kv_head], scores, at * PAGE_TOKENS)
        out[:] = 0
        totals = np.empty(heads, np.float32)
        for head in range(heads):
            totals[head] = _weights(scores[head, first:last], scale, softcap)
            scores[head, start * PAGE_TOKENS : first] = 0
        for at in range(start, stop):
            position = at * PAGE_TOKENS
            count = min(PAGE_TOKENS, last - position)
            add_values(scores, position, count, values[pages[at], kv_head], out)
        for head in range(heads):
            for d in range(head_dim):
                out[head, d] /= totals[head]

    @numba.njit(nogil=True, parallel=parallel)  # else `prange` is `range`
    def attend(
        queries: Any,
        keys: Any,
        values: Any,
        tokens: Any,
        rows: Any,
        visible: Any,
        tables: Any,
        scale: Any,
        softcap: Any,
        window: Any,
        out: Any,
    ) -> None:
        kv_heads = keys.shape[1]
        group = queries.shape[1] // kv_heads
        for index in numba.prange(len(tokens) * kv_heads):
            at, kv_head = index // kv_heads, index % kv_heads
            token, last = tokens[at], visible[at]
            first = max(0, last - window) if window > 0 else 0
            mine = slice(kv_head * group, (kv_head + 1) * group)
            one(
                queries[token, mine],
                keys,
                values,
                kv_head,
                tables[rows[at]],
                first,
                last,
                scale,
                softcap,
                out[token, mine],
            )

    return CpuAttention(_store, attend)


@numba.njit(nogil=True, cache=True)
def _store(new_keys: Any, new_values: Any, places: Any, keys: Any, values: Any) -> None:
    tokens, heads, dimension = new_keys.shape
    for token in range(tokens):
        page, offset = places[token] // PAGE_TOKENS, places[token] % PAGE_TOKENS
        for head in range(heads):
            for d in range(dimension):
                keys[page, head, d, offset] = new_keys[token, head, d]
                values[page, head, offset, d] = new_values[token, head, d]


@numba.njit(nogil=True, fastmath=True, cache=True)
def _weights(scores: Any, scale: Any, softcap: Any) -> Any:
    """Replace each score by exp(score * scale - the highest); returns their sum."""
    count = len(scores)  # loops to it, from 0, are vectorized; others are not
    for j in range(count):
        scores[j] *= scale
    if softcap > 0:
        for j in range(count):
            scores[j] = softcap * np.tanh(scores[j] / softcap)
    top = scores[0]
    for j in range(count):
        top = max(top, scores[j])
    bits = np.empty(count, np.int32)
    powers = bits.view(np.float32)
    # 2**whole by its bits, times a polynomial in the fraction: within 3e-7 of exp, and vectorized as exp is not.
    for j in range(count):
        x = max((scores[j] - top) * np.float32(1.4426950408889634), np.float32(-126))
        whole = np.floor(x)
        f = x - whole
        power = np.float32(1.8775767e-3)
        power = power * f + np.float32(8.9893397e-3)
        power = power * f + np.float32(5.5826318e-2)
        power = power * f + np.float32(2.4015361e-1)
        power = power * f + np.float32(6.9315308e-1)
        scores[j] = power * f + np.float32(9.9999994e-1)
        bits[j] = np.int32((whole + np.float32(127)) * np.float32(1 << 23))
    total = np.float32(0)
    for j in range(count):
        scores[j] *= powers[j]
        total += scores[j]
    return total


def _multiply(rows: int, width: int, count: int | None = None) -> Any:
    """An intrinsic: (a, a_row, a_at, b, b_at, c, c_row, c_at, count) -> None, for two-dimensional float32 arrays.

    Adds to c[c_row : c_row + rows, c_at : c_at + width] the product of a[a_row : a_row + rows, a_at : a_at + count]
    and b[:count, b_at : b_at + width]. A `count` known here, a multiple of 4, lets one row have several sums.
    """
    chains = max(1, 4 // rows) if count else 1  # a sum alone would wait for its last addition
    cells = [(row, at) for row in range(rows) for at in range(0, width, _LANES)]
    vector = ir.VectorType(_F32, _LANES)

    @intrinsic
    def multiply(
        typing: Any,
        a: Any,
        a_row: Any,
        a_at: Any,
        b: Any,
        b_at: Any,
        c: Any,
        c_row: Any,
        c_at: Any,
        length: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def row(index: int, at: Any, column: Any) -> Any:
                array = context.make_array(signature.args[index])(context, builder, arguments[index])
                start = builder.mul(at, builder.extract_value(array.shape, 1))
                return builder.gep(array.data, [builder.add(start, column)])

            def vector_at(pointer: Any, offset: int) -> Any:
                return builder.bitcast(builder.gep(pointer, [_I64(offset)]), vector.as_pointer())

            first, target = arguments[1], arguments[6]
            left = [row(0, builder.add(first, _I64(i)), arguments[2]) for i in range(rows)]
            out = [row(5, builder.add(target, _I64(i)), arguments[7]) for i in range(rows)]
            sums = [[cgutils.alloca_once(builder, vector) for _ in cells] for _ in range(chains)]
            for total in itertools.chain(*sums):
                builder.store(ir.Constant(vector, None), total)
            with cgutils.for_range(builder, builder.udiv(arguments[8], _I64(chains)), intp=_I64) as steps:
                for chain, totals in enumerate(sums):
                    k = builder.add(builder.mul(steps.index, _I64(chains)), _I64(chain))
                    right = row(3, k, arguments[4])
                    for (i, at), total in zip(cells, totals, strict=True):
                        number = splat(builder, builder.load(builder.gep(left[i], [k])), vector)
                        numbers = builder.load(vector_at(right, at), align=4)
                        product = builder.fmul(number, numbers, flags=["fast"])
                        builder.store(builder.fadd(product, builder.load(total), flags=["fast"]), total)
            for (i, at), *parts in zip(cells, *sums, strict=True):
                place = vector_at(out[i], at)
                value = builder.load(place, align=4)
                for part in parts:
                    value = builder.fadd(value, builder.load(part), flags=["fast"])
                builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(a, a_row, a_at, b, b_at, c, c_row, c_at, length), generate

    return multiply
