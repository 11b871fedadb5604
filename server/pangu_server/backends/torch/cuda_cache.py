"""The pages on a GPU: written and read by Triton kernels, long pieces of prompts by torch's flash attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pangu_server.backends.torch.cache import PAGE_TOKENS, Flat, Options, PagedCache, Segment
from pangu_server.backends.torch.device_choosing import upload
from pangu_server.backends.torch.kernels import triton_attention


class CudaCache(PagedCache):
    """Keys and values (pages, PAGE_TOKENS, kv_heads, head_dim) a layer; the tables are on the device too."""

    on_device = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._keys, self._values = (
            [
                torch.empty(
                    (self.pages, PAGE_TOKENS, heads.kv_heads, heads.head_dim),
                    dtype=self.dtype,
                    device=self.device,
                )
                for heads in self.layers
            ]
            for _ in range(2)
        )
        self._tables = torch.zeros(self.tables.shape, dtype=torch.int32, device=self.device)
        self._changes: list[tuple[int, int]] = []  # places of the tables, and their pages

    def give(self, slot: int, first: int, pages: Sequence[int]) -> None:
        """See `PagedCache`."""
        super().give(slot, first, pages)
        start = slot * self.tables.shape[1] + first
        self._changes += enumerate(pages, start)

    def update_tables(self) -> None:
        """See `PagedCache`."""
        if self._changes:
            # Of two changes of a place the later one counts.
            changes = np.array(list(dict(self._changes).items()), np.int64).T.copy()
            places, pages = upload(self.device, changes)
            self._tables.view(-1).index_copy_(0, places, pages.int())
            self._changes.clear()

    def rows(self, slots: torch.Tensor) -> torch.Tensor:
        """See `PagedCache`."""
        return self._tables.index_select(0, slots)

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
        keys, values = self._keys[layer], self._values[layer]
        triton_attention.store(key, value, keys, values, flat.places)

        def few(queries: torch.Tensor) -> torch.Tensor:
            assert flat.tables is not None
            return triton_attention.attention(
                queries, keys, values, flat.tables, flat.visible,
                scale=options.scale, window=options.window, softcap=options.softcap,
            )  # fmt: skip

        if flat.tokens is None:
            return few(query)
        out = torch.empty_like(query)
        for part in flat.segments:
            tokens = slice(part.first, part.first + part.count)
            out[tokens] = self._long(layer, query[tokens], options, part)
        if len(flat.tokens):
            out.index_copy_(0, flat.tokens, few(query.index_select(0, flat.tokens)))
        return out

    def _long(self, layer: int, query: torch.Tensor, options: Options, segment: Segment) -> torch.Tensor:
        if self.dtype == torch.float32 or options.softcap or query.shape[-1] > 256:
            return self.attend_gathered(layer, query, options, segment)
        keys, values = (
            tensor.index_select(0, segment.pages).flatten(0, 1)[None, : segment.length]
            for tensor in (self._keys[layer], self._values[layer])
        )
        # The last query sees all keys: flash attention's mask is aligned so. SDPA would repeat shared keys.
        out = torch.ops.aten._flash_attention_forward(
            query[None], keys, values, None, None, segment.count, segment.length, 0.0, True, False,
            scale=options.scale,
            window_size_left=options.window - 1 if options.window else None,
            window_size_right=0 if options.window else None,
        )[0]  # fmt: skip
        return out[0]

    def gathered(self, layer: int, pages: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PagedCache`."""
        keys, values = (
            tensor[pages].flatten(0, 1)[:length].transpose(0, 1)
            for tensor in (self._keys[layer], self._values[layer])
        )
        return keys, values
