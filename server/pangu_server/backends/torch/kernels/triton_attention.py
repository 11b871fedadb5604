"""Attention of a few new tokens a row over keys and values in pages: decode, and the verification of drafts.

A page holds `page_tokens` tokens of all key-value heads of a layer; a row's `page_table` says where its tokens are.
All query heads of one key-value head, times the row's new tokens, are one tile of a matrix product, so keys are read
once for them. A row's length is cut into chunks of CHUNK tokens, one program each, with a running softmax; `_merge`
joins a row's chunks in their order. Chunks belong to the row's own length, so its result is the same in any batch.
The grid depends on shapes alone and nothing is read by the host: all of it can be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl

from pangu_server.backends.torch.kernels.products import dot

CHUNK = 256  # tokens of a program
MAX_TILE = 64  # query heads times tokens of a program


@triton.jit(do_not_specialize=["max_pages", "window"])
def _attend(
    q,
    keys,
    values,
    page_table,
    lengths,
    tops,
    sums,
    sums_v,
    max_pages,
    stride_q,
    stride_page,
    stride_token,
    stride_head,
    scale,
    softcap,
    window,
    T: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """One chunk of one row for a tile of queries: the highest score, and sums of the weights and of weighted values."""
    row, chunk, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    start = chunk * CHUNK
    end = tl.minimum(length, start + CHUNK)
    begin = start
    if WINDOW:  # the row's first new token sees furthest back
        begin = tl.maximum(start, (length - T - window + 1) // TOKENS * TOKENS)
    if begin < end:
        parts: tl.constexpr = (SHARED * T + TILE - 1) // TILE
        head = part // parts
        query = part % parts * TILE + tl.arange(0, TILE)  # token * SHARED + head of those that share keys
        known = query < SHARED * T
        token = query // SHARED
        q_head = head * SHARED + query % SHARED
        d = tl.arange(0, PADDED)
        t = tl.arange(0, TOKENS)
        inside = (d < WIDTH)[None, :]
        place = (row * T + token)[:, None] * stride_q + (q_head * WIDTH)[:, None] + d[None, :]
        queries = tl.load(q + place, mask=known[:, None] & inside, other=0.0)
        last = length - T + token  # position of each query: it sees this token and those before it
        top = tl.full((TILE,), float("-inf"), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        total_v = tl.zeros((TILE, PADDED), tl.float32)
        for at in range(begin, end, TOKENS):
            position = at + t
            held = position < end
            page = tl.load(page_table + row * max_pages + position // PAGE, mask=held, other=0).to(tl.int64)
            slot = page * stride_page + position % PAGE * stride_token + head * stride_head
            here = held[:, None] & inside
            key = tl.load(keys + slot[:, None] + d[None, :], mask=here, other=0.0)
            scores = dot(queries, tl.trans(key), tl.zeros((TILE, TOKENS), tl.float32)) * scale
            if SOFTCAP:  # softcap * tanh(scores / softcap)
                scores = softcap - 2 * softcap / (1 + tl.exp(2 / softcap * scores))
            seen = (position[None, :] <= last[:, None]) & held[None, :]
            if WINDOW:
                seen = seen & (position[None, :] > last[:, None] - window)
            scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))  # times log2(e), for exp2
            higher = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)  # a query may see nothing of this chunk
            weights = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(top - base)
            value = tl.load(values + slot[:, None] + d[None, :], mask=here, other=0.0)
            total = total * shrink + tl.sum(weights, 1)
            total_v = dot(weights.to(value.dtype), value, total_v * shrink[:, None])
            top = higher
        store = ((row.to(tl.int64) * tl.num_programs(1) + chunk) * T + token) * (KV_HEADS * SHARED) + q_head
        tl.store(tops + store, top, mask=known)
        tl.store(sums + store, total, mask=known)
        tl.store(sums_v + store[:, None] * WIDTH + d[None, :], total_v, mask=known[:, None] & inside)


@triton.jit(do_not_specialize=["chunks", "window"])
def _merge(
    lengths,
    tops,
    sums,
    sums_v,
    out,
    chunks,
    window,
    T: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """One head of one token: its row's chunks joined in order. A token that sees nothing gets zeros."""
    new, head = tl.program_id(0), tl.program_id(1)
    row, token = new // T, new % T
    length = tl.load(lengths + row)
    first = 0
    if WINDOW:
        first = tl.maximum(0, (length - T - window + 1) // TOKENS * TOKENS) // CHUNK
    d = tl.arange(0, PADDED)
    inside = d < WIDTH
    top = float("-inf")
    total = 0.0
    result = tl.zeros((PADDED,), tl.float32)
    for chunk in range(first, tl.cdiv(length, CHUNK)):
        place = ((row.to(tl.int64) * chunks + chunk) * T + token) * HEADS + head
        of_chunk = tl.load(tops + place)
        higher = tl.maximum(top, of_chunk)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink, weight = tl.exp2(top - base), tl.exp2(of_chunk - base)
        total = total * shrink + tl.load(sums + place) * weight
        values = tl.load(sums_v + place * WIDTH + d, mask=inside, other=0.0)
        result = result * shrink + values * weight
        top = higher
    result = result / tl.where(total == 0, 1.0, total)
    tl.store(out + (new * HEADS + head) * WIDTH + d, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _store(
    new_keys,
    new_values,
    keys,
    values,
    slots,
    key_stride,
    value_stride,
    stride_page,
    stride_token,
    stride_head,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    PAGE: tl.constexpr,
):
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    if slot >= 0:
        i = tl.arange(0, PADDED)
        inside = i < COUNT
        place = slot // PAGE * stride_page + slot % PAGE * stride_token + i // WIDTH * stride_head + i % WIDTH
        tl.store(keys + place, tl.load(new_keys + token * key_stride + i, mask=inside), mask=inside)
        tl.store(values + place, tl.load(new_values + token * value_stride + i, mask=inside), mask=inside)


def attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    max_length: int | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Attention of each row's T newest tokens, whose keys and values are in the pages already.

    Token t of a row (0 is the oldest of the T) is at position lengths[row] - T + t and sees positions 0 to its own,
    with a window only the last `window` of them. One that sees nothing, as in a row of length 0, gets zeros.

    Args:
        q: (rows * T, heads, head_dim), a row's tokens one after the other.
        keys: (pages, page_tokens, kv_heads, head_dim); `values` alike, and laid out alike.
        page_table: int32 (rows, pages of the longest row), where each page of a row is.
        lengths: int32 (rows,), tokens that the row's last new token sees.
        scale: what scores are multiplied by.
        max_length: no row is longer; smaller than the page table allows, it spares empty programs.
        window: tokens of a sliding window; 0: none.
        softcap: scores become softcap * tanh(scores / softcap); 0: they do not.

    Returns:
        (rows * T, heads, head_dim).
    """
    (tokens, heads, width), rows = q.shape, len(lengths)
    new, page, kv_heads = tokens // rows, keys.shape[1], keys.shape[2]
    shared = heads // kv_heads
    if q.stride(2) != 1 or q.stride(1) != width:
        q = q.contiguous()
    chunks = triton.cdiv(max_length or page_table.shape[1] * page, CHUNK)
    tile = min(MAX_TILE, max(16, triton.next_power_of_2(shared * new)))
    padded = triton.next_power_of_2(width)
    block = 64 if padded <= 128 else 32
    tops, sums = (q.new_empty((rows, chunks, new, heads), dtype=torch.float32) for _ in range(2))
    sums_v = q.new_empty((rows, chunks, new, heads, width), dtype=torch.float32)
    out = torch.empty((tokens, heads, width), device=q.device, dtype=q.dtype)
    _attend[rows, chunks, kv_heads * triton.cdiv(shared * new, tile)](
        q,
        keys,
        values,
        page_table,
        lengths,
        tops,
        sums,
        sums_v,
        page_table.stride(0),
        q.stride(0),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        scale,
        softcap,
        window,
        T=new,
        KV_HEADS=kv_heads,
        SHARED=shared,
        WIDTH=width,
        PADDED=padded,
        PAGE=page,
        CHUNK=CHUNK,
        TOKENS=block,
        TILE=tile,
        SOFTCAP=softcap > 0,
        WINDOW=window > 0,
        num_warps=4,
        num_stages=2,
    )
    _merge[tokens, heads](
        lengths,
        tops,
        sums,
        sums_v,
        out,
        chunks,
        window,
        T=new,
        HEADS=heads,
        WIDTH=width,
        PADDED=padded,
        CHUNK=CHUNK,
        TOKENS=block,
        WINDOW=window > 0,
        num_warps=1,
    )
    return out


def store(
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Write new keys and values (tokens, kv_heads, head_dim) into the pages, see `attention`.

    `slots`, int64 (tokens,), are page * page_tokens + offset; -1 writes nothing.
    """
    count = new_keys.shape[1] * new_keys.shape[2]
    new_keys, new_values = (
        new if new[0].is_contiguous() else new.contiguous() for new in (new_keys, new_values)
    )
    _store[(len(slots),)](
        new_keys,
        new_values,
        keys,
        values,
        slots,
        new_keys.stride(0),
        new_values.stride(0),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        WIDTH=new_keys.shape[2],
        COUNT=count,
        PADDED=triton.next_power_of_2(count),
        PAGE=keys.shape[1],
    )
