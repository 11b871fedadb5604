"""One forward of the model for several rows over the cache."""

from collections.abc import Sequence
from typing import Any

import torch

from pangu_server.backends.torch.cache import Slots
from pangu_server.backends.torch.rows import Row


class Runner:
    """A transformers model that reads and writes keys and values in `slots`."""

    def __init__(self, model: Any, slots: Slots) -> None:
        model.set_attn_implementation("sdpa")  # which the masks of the cache are for
        self._model, self._slots = model, slots

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._model.device
        return device

    def forward(self, rows: Sequence[Row], count: int, *, keep: int) -> torch.Tensor:
        """Compute the next `count` tokens of each row, which then holds them.

        Returns the logits (rows, tokens, vocabulary) in float32 of the last `keep` tokens, or of all for 0.
        """
        device = self.device
        length = max(row.held for row in rows) + count
        slots = [row.slot for row in rows]
        self._slots.reserve(max(slots) + 1, length)
        positions = torch.tensor([range(row.held, row.held + count) for row in rows], device=device)
        ids = torch.tensor([row.tokens[row.held : row.held + count] for row in rows], device=device)
        output = self._model(
            input_ids=ids,
            attention_mask=self._slots.select(slots, positions, length),
            position_ids=positions,
            past_key_values=self._slots,
            use_cache=True,
            logits_to_keep=keep,
        )
        for row in rows:
            row.held += count
        logits: torch.Tensor = output.logits
        return logits.float()
