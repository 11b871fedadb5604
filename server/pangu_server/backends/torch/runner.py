"""One forward of the model for a flat batch: the tokens of all rows one after the other, over the paged cache."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pangu_server.backends.torch.attention import NAME, Paged, Probe
from pangu_server.backends.torch.cache import FEW_TOKENS, PAGE_TOKENS, Flat, Heads, PagedCache, Segment
from pangu_server.backends.torch.rows import Part


def heads_of(model: Any) -> list[Heads]:
    """What each layer of `model` keeps of a token, learned from a forward of one token."""
    model.set_attn_implementation(NAME)
    probe = Probe()
    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.inference_mode():
        model(input_ids=ids, position_ids=ids, use_cache=False, paged=probe, logits_to_keep=1)
    return [probe.layers[layer] for layer in range(len(probe.layers))]


class Runner:
    """A transformers model over `cache`."""

    def __init__(self, model: Any, cache: PagedCache) -> None:
        self.model, self.cache = model, cache
        self.device: torch.device = model.device

    def forward(self, parts: Sequence[Part]) -> torch.Tensor:
        """Compute these parts of their rows, which have pages for them.

        Returns the logits (kept tokens, vocabulary) in the model's type, part after part.
        """
        ids, positions, places = [], [], []
        segments, few, slots, visible, kept = [], [], [], [], []
        first = 0
        for row, start, count, keep, _, guesses in parts:
            stop = start + count
            known = row.ticket.tokens[start:stop]
            ids += [*known, *guesses]
            positions.append(np.arange(start, stop))
            pages = self.cache.tables[row.slot, start // PAGE_TOKENS : -(-stop // PAGE_TOKENS)]
            offsets = positions[-1] - start // PAGE_TOKENS * PAGE_TOKENS
            places.append(pages[offsets // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + offsets % PAGE_TOKENS)
            segments.append(Segment(first, count, stop, row.slot))
            if count <= FEW_TOKENS:
                few += range(first, first + count)
                slots += [row.slot] * count
                visible += range(start + 1, stop + 1)
            if keep == "all":
                kept += range(first, first + count)
            elif keep == "last":
                kept.append(first + count - 1)
            first += count
        flat = Flat(
            places=torch.from_numpy(np.concatenate(places)),
            segments=segments,
            tokens=torch.tensor(few),
            slots=torch.tensor(slots),
            visible=torch.tensor(visible),
        )
        output = self.model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.from_numpy(np.concatenate(positions))[None],
            use_cache=False,
            paged=Paged(self.cache, flat),
            logits_to_keep=torch.tensor(kept) if kept else 1,
        )
        logits: torch.Tensor = output.logits[0]
        return logits
