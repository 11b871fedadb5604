"""The tensors of the attention cache: pages of keys and values, written and read by our attention function."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pangu_server.backends.torch.device_choosing import upload

PAGE_TOKENS = 16
FEW_TOKENS = 16  # new ones of a row: up to these the pages are read where they are; above they are gathered


class Heads(NamedTuple):
    """What a layer keeps of a token."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A row's new tokens in a flat batch."""

    first: int  # place of the first one
    count: int
    length: int  # of the row with them
    pages: torch.Tensor  # int64, of the whole row, on the model's device


@dataclass(frozen=True, eq=False)
class Flat:
    """Where the tokens of one forward belong: rows one after the other. Tensors are on the model's device."""

    places: torch.Tensor  # int64 (tokens,): page * PAGE_TOKENS + offset; negative: nowhere
    segments: Sequence[Segment]  # of rows with more than FEW_TOKENS new ones
    # The tokens of the other rows: which, whose slot, how many positions it sees. `tokens` None: all there are.
    tokens: torch.Tensor | None
    slots: torch.Tensor
    visible: torch.Tensor
    tables: torch.Tensor | None = None  # int32 (of those tokens, pages); on a GPU

    @cached_property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """places, tokens, slots, visible for kernels on a CPU, once for all layers."""
        tokens = torch.arange(len(self.places)) if self.tokens is None else self.tokens
        return (self.places.numpy(), tokens.numpy(), self.slots.numpy(), self.visible.numpy())


class Options(NamedTuple):
    """How a layer attends."""

    scale: float
    window: int = 0  # positions that are seen at most; 0: all
    softcap: float = 0.0


class PagedCache:
    """Keys and values by layer. `tables` (slots, pages) says which pages a row has, in order; on the host."""

    on_device = False  # whether the tables are on the device too, and a step can run ahead of the host

    def __init__(
        self,
        layers: Sequence[Heads],
        pages: int,
        slots: int,
        row_pages: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers, self.pages, self.dtype, self.device = list(layers), pages, dtype, device
        self.tables = np.zeros((slots, row_pages), np.int32)

    def give(self, slot: int, first: int, pages: Sequence[int]) -> None:
        """The row in `slot` has these pages, from its page `first` on."""
        self.tables[slot, first : first + len(pages)] = pages

    def segment(self, first: int, count: int, length: int, slot: int) -> Segment:
        """The new tokens of the row in `slot`. Once a forward: all layers have the same pages."""
        used = self.tables[slot, : -(-length // PAGE_TOKENS)]
        return Segment(first, count, length, upload(self.device, used.astype(np.int64)))

    def update_tables(self) -> None:
        """Tell the device what has changed; before a forward."""

    def rows(self, slots: torch.Tensor) -> torch.Tensor | None:
        """The tables of these slots, on the device; None where it is the host."""
        return None

    @property
    def row_tokens(self) -> int:
        """The longest row."""
        return int(self.tables.shape[1]) * PAGE_TOKENS

    @property
    def nbytes(self) -> int:
        """Memory of all pages."""
        return self.pages * page_bytes(self.layers, self.dtype)

    def copy(self, source: int, target: int) -> None:
        """Copy a page."""
        for tensor in self._tensors():
            tensor[target] = tensor[source]

    def _tensors(self) -> Sequence[torch.Tensor]:
        raise NotImplementedError

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Options,
        flat: Flat,
    ) -> torch.Tensor:
        """Write the tokens' keys and values (tokens, kv_heads, head_dim), then attend; query (tokens, heads, head_dim).

        Each token sees its own row up to itself. Returns (tokens, heads, head_dim).
        """
        raise NotImplementedError

    def gathered(self, layer: int, pages: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (kv_heads, length, head_dim) of a row."""
        raise NotImplementedError

    def attend_gathered(
        self, layer: int, query: torch.Tensor, options: Options, segment: Segment
    ) -> torch.Tensor:
        """A row's new tokens, query (count, heads, head_dim), by torch's own attention over a copy of its pages."""
        count, heads, dimension = query.shape
        keys, values = self.gathered(layer, segment.pages, segment.length)
        kv_heads = len(keys)
        groups = heads // kv_heads
        # All query heads of a key's head are as many more queries: nothing is repeated.
        queries = query.view(count, kv_heads, groups, dimension).permute(1, 2, 0, 3)
        queries = queries.reshape(1, kv_heads, groups * count, dimension)
        at = torch.arange(segment.length - count, segment.length, device=self.device)[:, None]
        seen = torch.arange(segment.length, device=self.device)
        mask = seen <= at
        if options.window:
            mask &= seen > at - options.window
        mask = mask.repeat(groups, 1)
        if options.softcap:
            scores = queries.float() @ keys[None].float().transpose(2, 3) * options.scale
            scores = torch.tanh(scores / options.softcap) * options.softcap
            weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
            out = (weights @ values[None].float()).to(query.dtype)
        else:
            out = F.scaled_dot_product_attention(
                queries, keys[None], values[None], attn_mask=mask, scale=options.scale
            )
        out = out.view(kv_heads, groups, count, dimension).permute(2, 0, 1, 3)
        return out.reshape(count, heads, dimension)


class CpuCache(PagedCache):
    """Keys lie by dimension in a page, for `kernels.cpu_attention`; without it, or in half precision, by torch."""

    def __init__(self, *arguments: Any, threads: int = 1, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._keys = [self._empty(heads.kv_heads, heads.head_dim, PAGE_TOKENS) for heads in self.layers]
        self._values = [self._empty(heads.kv_heads, PAGE_TOKENS, heads.head_dim) for heads in self.layers]
        # NumPy has no bfloat16, and the kernels no other type than float32.
        pairs = zip(self._keys, self._values, strict=True) if self.dtype == torch.float32 else ()
        self._arrays = [(keys.numpy(), values.numpy()) for keys, values in pairs]
        self._kernels = [_kernels(heads, self.dtype, threads) for heads in self.layers]

    def _empty(self, *shape: int) -> torch.Tensor:
        # Untouched memory costs nothing, and is never read.
        return torch.empty((self.pages, *shape), dtype=self.dtype)

    def _tensors(self) -> Sequence[torch.Tensor]:
        return [*self._keys, *self._values]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Options,
        flat: Flat,
    ) -> torch.Tensor:
        """See `PagedCache`."""
        kernels, out = self._kernels[layer], torch.empty_like(query)
        places, few, slots, visible = flat.arrays
        gathered = list(flat.segments)
        if kernels is None:
            pages, offsets = flat.places // PAGE_TOKENS, flat.places % PAGE_TOKENS
            self._keys[layer][pages, :, :, offsets] = key
            self._values[layer][pages, :, offsets] = value
            gathered += [
                self.segment(int(token), 1, int(length), int(slot))
                for token, length, slot in zip(few, visible, slots, strict=True)
            ]
        else:
            key_pages, value_pages = self._arrays[layer]
            kernels.store(key.numpy(), value.numpy(), places, key_pages, value_pages)
            scale, softcap = np.float32(options.scale), np.float32(options.softcap)
            kernels.attend(
                query.numpy(), key_pages, value_pages, few, slots, visible, self.tables,
                scale, softcap, options.window, out.numpy(),
            )  # fmt: skip
        for part in gathered:
            tokens = slice(part.first, part.first + part.count)
            out[tokens] = self.attend_gathered(layer, query[tokens], options, part)
        return out

    def gathered(self, layer: int, pages: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PagedCache`."""
        keys = self._keys[layer][pages].permute(1, 0, 3, 2).flatten(1, 2)[:, :length]
        values = self._values[layer][pages].permute(1, 0, 2, 3).flatten(1, 2)[:, :length]
        return keys, values


def _kernels(heads: Heads, dtype: torch.dtype, threads: int) -> Any:
    """The compiled attention for this layer; None where torch does it."""
    if dtype != torch.float32 or heads.head_dim % 8:
        return None
    try:
        from pangu_server.backends.torch.kernels.cpu_attention import cpu_attention
        from pangu_server.backends.torch.kernels.spreading import spread
    except ImportError:
        return None
    kernels = cpu_attention(heads.head_dim, threads > 1)
    return kernels._replace(attend=spread(kernels.attend, threads))


def page_bytes(layers: Sequence[Heads], dtype: torch.dtype) -> int:
    """Memory of one page, all layers."""
    return sum(2 * heads.kv_heads * heads.head_dim * PAGE_TOKENS * dtype.itemsize for heads in layers)
