"""The next token of each row, drawn where the logits are.

A token is kept if its logit reaches a threshold: the highest one such that those that reach it are top_k tokens, or
top_p of their probability, or more. So tokens that are equal to the last one needed are kept with it. A threshold is
found exactly, two bits of it a pass over the logits, as a float's bits in the right order are an integer that grows
with it. The draw is the inverse of the cumulated weights in the order of token ids: it needs no sorting.
"""

import torch
import triton
import triton.language as tl

BLOCK = 4096


@triton.jit
def _block(logits, start, count, BLOCK: tl.constexpr):
    """Some logits from `start` on, minus infinity after the last, and which of them there are."""
    ids = start + tl.arange(0, BLOCK)
    inside = ids < count
    values = tl.load(logits + ids, mask=inside, other=float("-inf")).to(tl.float32)
    return values, ids, inside


@triton.jit
def _ordered(values):
    """Unsigned integers in the order of single-precision numbers."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # without a negative zero
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _weights(values, top, rate):
    """Probabilities in relation to the highest one."""
    return tl.exp2((values - top) * rate)


@triton.jit
def _total(logits, count, top, rate, least, min_p, BLOCK: tl.constexpr):
    """The weight of what is kept."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        values, _, inside = _block(logits, start, count, BLOCK)
        weights = _weights(values, top, rate)
        kept = inside & (_ordered(values) >= least) & (weights >= min_p)
        total += tl.where(kept, weights, 0.0)
    return tl.sum(total, 0)


@triton.jit
def _threshold(logits, count, top, rate, least, goal, COUNTED: tl.constexpr, BLOCK: tl.constexpr):
    """The highest ordered integer such that tokens from there on, of those from `least` on, weigh at least `goal`.

    COUNTED: each token weighs one.
    """
    one = tl.full((), 1, tl.uint32)
    found = one - one
    for step in range(16):
        unit = one << (30 - 2 * step)
        first = tl.zeros((BLOCK,), tl.float32)
        second = tl.zeros((BLOCK,), tl.float32)
        third = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, count, BLOCK):
            values, _, inside = _block(logits, start, count, BLOCK)
            keys = _ordered(values)
            weights = tl.where(inside & (keys >= least), 1.0 if COUNTED else _weights(values, top, rate), 0.0)
            first += tl.where(keys >= found + unit, weights, 0.0)
            second += tl.where(keys >= found + unit * 2, weights, 0.0)
            third += tl.where(keys >= found + unit * 3, weights, 0.0)
        if tl.sum(third, 0) >= goal:
            found += unit * 3
        elif tl.sum(second, 0) >= goal:
            found += unit * 2
        elif tl.sum(first, 0) >= goal:
            found += unit
    return tl.minimum(found, _ordered(top))


@triton.jit
def _sample(
    logits,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    uniforms,
    out,
    count,
    stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride
    top = float("-inf")
    best = 0
    for start in range(0, count, BLOCK):
        values, ids, _ = _block(logits, start, count, BLOCK)
        highest = tl.max(values, 0)
        if highest > top:
            top = highest
            best = tl.min(tl.where(values == highest, ids, count), 0)
    temperature = tl.load(temperatures + row).to(tl.float32)
    if temperature > 0:
        rate = 1.4426950408889634 / tl.maximum(temperature, 1e-30)  # for exp2
        top_k = tl.load(top_ks + row)
        top_p = tl.load(top_ps + row).to(tl.float32)
        min_p = tl.load(min_ps + row).to(tl.float32)
        least = tl.full((), 0, tl.uint32)
        if (top_k > 0) & (top_k < count):
            least = _threshold(logits, count, top, rate, least, top_k.to(tl.float32), True, BLOCK)
        if top_p < 1:
            goal = top_p * _total(logits, count, top, rate, least, 0.0, BLOCK)
            least = tl.maximum(least, _threshold(logits, count, top, rate, least, goal, False, BLOCK))
        target = tl.load(uniforms + row).to(tl.float32) * _total(
            logits, count, top, rate, least, min_p, BLOCK
        )
        before = 0.0
        for start in range(0, count, BLOCK):
            values, ids, inside = _block(logits, start, count, BLOCK)
            weights = _weights(values, top, rate)
            kept = inside & (_ordered(values) >= least) & (weights >= min_p) & (weights > 0)
            weights = tl.where(kept, weights, 0.0)
            of_block = tl.sum(weights, 0)
            if (before <= target) & (of_block > 0):
                # Of the block that holds it, or of the last one if rounding leaves the target beyond the end.
                beyond = kept & (before + tl.cumsum(weights, 0) > target)
                last = tl.max(tl.where(kept, ids, 0), 0)
                best = tl.minimum(last, tl.min(tl.where(beyond, ids, count), 0))
            before += of_block
    tl.store(out + row, best)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """The next token of each row, int64 (rows,). A row's token does not depend on the other rows.

    Args:
        logits: (rows, vocabulary), left as they are.
        temperature: (rows,) as all that follow, on the same device; 0: the highest logit, the lowest id of equal ones.
        top_k: int32; keep this many of the best and what equals the last of them; 0: all.
        top_p: of those, keep the fewest best that have this share of their probability, and what equals the last.
        min_p: of those, keep what is at least this probable in relation to the best.
        uniform: in [0, 1); the token is the first, by id, whose cumulated probability exceeds it.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    rows, count = logits.shape
    block = min(BLOCK, triton.next_power_of_2(count))
    _sample[(rows,)](
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        uniform,
        out,
        count,
        logits.stride(0),
        BLOCK=block,
        num_warps=8 if block >= 2048 else 4,
    )
    return out
