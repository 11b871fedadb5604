"""Attention over pages on a CPU, in single precision: for rows of few new tokens, which need no copy of them.

Keys lie in a page by dimension, values by token, so that both are read along what is contiguous.
"""

import functools
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

PAGE_TOKENS = 16
_F32, _I64 = ir.FloatType(), ir.IntType(64)
_CHAINS = 4  # sums at a time: one alone would wait for its last addition


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
    page_scores, add_values = _page_scores(head_dim), _add_values(head_dim)

    @numba.njit(nogil=True, fastmath=True)
    def one(
        query: Any,
        keys: Any,
        values: Any,
        head: Any,
        pages: Any,
        first: Any,
        last: Any,
        scale: Any,
        softcap: Any,
        out: Any,
    ) -> None:
        start, stop = first // PAGE_TOKENS, (last + PAGE_TOKENS - 1) // PAGE_TOKENS
        scores = np.empty(stop * PAGE_TOKENS, np.float32)
        for at in range(start, stop):
            page_scores(query, keys[pages[at], head], scores, at * PAGE_TOKENS)
        for j in range(first, last):
            scores[j] *= scale
        if softcap > 0:
            for j in range(first, last):
                scores[j] = softcap * np.tanh(scores[j] / softcap)
        total = _weights(scores, first, last)
        scores[start * PAGE_TOKENS : first] = 0
        for d in range(head_dim):
            out[d] = np.float32(0)
        for at in range(start, stop):
            add_values(
                scores,
                at * PAGE_TOKENS,
                values[pages[at], head],
                out,
                min(PAGE_TOKENS, last - at * PAGE_TOKENS),
            )
        for d in range(head_dim):
            out[d] /= total

    @numba.njit(nogil=True)
    def item(
        index: Any,
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
        heads = queries.shape[1]
        at, head = index // heads, index % heads
        last = visible[at]
        first = max(0, last - window) if window > 0 else 0
        kv_head = head // (heads // keys.shape[1])
        one(
            queries[tokens[at], head],
            keys,
            values,
            kv_head,
            tables[rows[at]],
            first,
            last,
            scale,
            softcap,
            out[tokens[at], head],
        )

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
        for index in numba.prange(len(tokens) * queries.shape[1]):
            item(index, queries, keys, values, tokens, rows, visible, tables, scale, softcap, window, out)

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
def _weights(scores: Any, first: Any, last: Any) -> Any:
    """Replace scores[first:last] by exp(score - the highest); returns their sum."""
    bits = np.empty(last, np.int32)
    powers = bits.view(np.float32)
    top = scores[first]
    for j in range(first, last):
        top = max(top, scores[j])
    # 2**whole by its bits, times a polynomial in the fraction: within 3e-7 of exp, and vectorized as exp is not.
    for j in range(first, last):
        x = max((scores[j] - top) * np.float32(1.4426950408889634), np.float32(-126))
        whole = np.floor(x)
        f = x - whole
        power = np.float32(1.8775767e-3)
        power = power * f + np.float32(8.9893397e-3)
        power = power * f + np.float32(5.5826318e-2)
        power = power * f + np.float32(2.4015361e-1)
        power = power * f + np.float32(6.9315308e-1)
        scores[j] = power * f + np.float32(9.9999994e-1)
        bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    total = np.float32(0)
    for j in range(first, last):
        scores[j] *= powers[j]
        total += scores[j]
    return total


class _Emitter:
    """What both loops need of LLVM."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.vector, self.lanes = builder, ir.VectorType(_F32, lanes), lanes

    def load(self, pointer: Any, index: Any) -> Any:
        """A vector from here on."""
        place = self.builder.gep(pointer, [index])
        return self.builder.load(self.builder.bitcast(place, self.vector.as_pointer()), align=4)

    def store(self, value: Any, pointer: Any, index: Any) -> None:
        """The vector to here."""
        place = self.builder.gep(pointer, [index])
        self.builder.store(value, self.builder.bitcast(place, self.vector.as_pointer()), align=4)

    def spread(self, pointer: Any, index: Any) -> Any:
        """A vector of the number here."""
        value = self.builder.load(self.builder.gep(pointer, [index]))
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, mask)

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        """a * b + total."""
        product = self.builder.fmul(a, b, flags=["fast"])
        return self.builder.fadd(product, total, flags=["fast"])


def _page_scores(head_dim: int) -> Any:
    """(query (head_dim,), keys of a page (head_dim, PAGE_TOKENS), scores, at): the page's scores, from `at` on."""

    @intrinsic
    def page_scores(typing: Any, query: Any, keys: Any, scores: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            q, k, target = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
            )
            emit = _Emitter(builder, PAGE_TOKENS)
            sums = [ir.Constant(emit.vector, None)] * _CHAINS
            for d in range(head_dim):
                along = emit.load(k, _I64(d * PAGE_TOKENS))
                sums[d % _CHAINS] = emit.multiply_add(emit.spread(q, _I64(d)), along, sums[d % _CHAINS])
            total = functools.reduce(lambda a, b: builder.fadd(a, b, flags=["fast"]), sums)
            emit.store(total, target, arguments[3])
            return context.get_dummy_value()

        return types.void(query, keys, scores, at), generate

    return page_scores


def _add_values(head_dim: int) -> Any:
    """(weights, at, values of a page (PAGE_TOKENS, head_dim), out (head_dim,), count): add `count` weighted values."""

    @intrinsic
    def add_values(typing: Any, weights: Any, at: Any, values: Any, out: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            w, v, target = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 2, 3)
            )
            lanes = 8
            emit = _Emitter(builder, lanes)
            parts = range(head_dim // lanes)
            first = [emit.load(target, _I64(part * lanes)) for part in parts]
            before = builder.block
            head, done = builder.append_basic_block("token"), builder.append_basic_block("done")
            builder.branch(head)
            builder.position_at_end(head)
            j = builder.phi(_I64)
            j.add_incoming(_I64(0), before)
            sums = [builder.phi(emit.vector) for _ in parts]
            weight = emit.spread(w, builder.add(arguments[1], j))
            row = builder.mul(j, _I64(head_dim))
            following = builder.add(j, _I64(1))
            j.add_incoming(following, head)
            added = []
            for part in parts:
                sums[part].add_incoming(first[part], before)
                along = emit.load(v, builder.add(row, _I64(part * lanes)))
                added.append(emit.multiply_add(weight, along, sums[part]))
                sums[part].add_incoming(added[part], head)
            builder.cbranch(builder.icmp_signed("<", following, arguments[4]), head, done)
            builder.position_at_end(done)
            for part in parts:
                emit.store(added[part], target, _I64(part * lanes))
            return context.get_dummy_value()

        return types.void(weights, at, values, out, count), generate

    return add_values
