"""Continuous batching: completions join and leave between two steps.

A turn computes a piece of the prompts that wait, then one token of every completion that runs, all in one forward.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pangu_server.backends.schedule import Schedule
from pangu_server.backends.seam import CacheUse, Counts
from pangu_server.backends.torch.cache import Slots
from pangu_server.backends.torch.choosing import NextTokens, prompt_logprobs
from pangu_server.backends.torch.rows import Row, Rows
from pangu_server.backends.torch.runner import Runner

logger = logging.getLogger(__name__)

# Prompt tokens a turn: the others wait for no more than these between two of their tokens. A CPU is at full
# speed with so few (SmolLM2-135M, one thread: 512 tokens take 1.5 s in pieces of 128, 2.0 s in pieces of 64,
# 1.4 s in pieces of 256); a GPU computes some hundred in the time of one.
PREFILL_TOKENS = {"cpu": 128, "cuda": 512}


class ContinuousSchedule(Schedule):
    """Says who gets tokens in a turn."""

    def __init__(
        self, model: Any, *, max_batch: int, context_length: int, on_batch: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._max_batch, self._context_length, self._on_batch = max_batch, context_length, on_batch
        self._slots = Slots(max_batch, context_length)
        self._rows = Rows(self._slots, max_batch)
        self._runner = Runner(model, self._slots)
        self._filling: Row | None = None  # the one whose prompt is computed now

    def close(self) -> None:
        """See `Schedule`; releases model and cache too."""
        super().close()
        self._slots.clear()
        del self._runner

    def cache_use(self) -> CacheUse:
        """See `Backend`."""
        used = sum(row.held for row in self._rows if row.ticket)
        return CacheUse(
            held_bytes=self._slots.held_bytes,
            used_fraction=used / (self._max_batch * self._context_length),
        )

    def counts(self) -> Counts:
        """See `Backend`."""
        return Counts()

    def turn(self) -> None:
        """See `Schedule`."""
        try:
            with torch.inference_mode():
                for row in self._rows:
                    if row.ticket and row.ticket.cancelled:
                        self._leave(row)
                self._prefill()
                if rows := self._rows.decoding:
                    self._decode(rows)
        except Exception:  # none that `_failing` foresees: the thread ends all tickets
            self._filling = None
            self._rows.clear()
            raise
        if not self.running:
            self._rows.clear_if_large()

    def _prefill(self) -> None:
        """Compute prompts, one after the other, until the turn's tokens are used up."""
        left = PREFILL_TOKENS[self._runner.device.type]
        while left > 0:
            if self._filling is None and not self._begin_prompt():
                return
            if row := self._filling:
                with self._failing([row]):
                    left -= self._fill(row, left)

    def _begin_prompt(self) -> bool:
        """Give the next waiting ticket a row, with the keys and values that another one has already."""
        with self.changed:
            head = list(self.waiting)[: self._max_batch - len(self.running)][:1]
        admitted = self.admit(head)
        for ticket in admitted:
            row, source, common = self._rows.claim(ticket)
            self._filling = row
            with self._failing([row]):
                self._rows.fill_from(row, source, common)
        return bool(admitted)

    def _fill(self, row: Row, limit: int) -> int:
        """Compute up to `limit` more tokens of the prompt; returns how many it was."""
        ticket, start = row.ticket, row.held
        assert ticket
        end = min(start + limit, len(row.tokens))
        done = end == len(row.tokens)
        if start == end - 1 and done and ticket.remaining and not ticket.prompt_due:
            self._promote(row)  # one token is what the decode step computes, for all rows at once
            return 0
        logits = self._runner.forward([row], end - start, keep=0 if ticket.prompt_due else 1)[0]
        if ticket.prompt_due:
            assert ticket.options.prompt_logprobs is not None
            following = row.tokens[start + 1 : end + 1]
            row.prompt_logprobs += prompt_logprobs(logits, following, ticket.options.prompt_logprobs)
        if done:
            if ticket.prompt_due:
                ticket.prompt_due = False
                ticket.listener.on_prompt(row.prompt_logprobs)
            if ticket.remaining:
                self._promote(row)
                self._take([row], logits[-1:])
            else:
                self._leave(row)
        return end - start

    def _promote(self, row: Row) -> None:
        """Its prompt is computed, or all but one token: it takes part in the next step."""
        self._filling = None
        row.decoding = True

    def _decode(self, rows: Sequence[Row]) -> None:
        self._on_batch(len(rows))
        with self._failing(rows):
            self._take(rows, self._runner.forward(rows, 1, keep=1)[:, -1])

    def _take(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Choose the next token of each row. `logits` has shape (rows, vocabulary)."""
        chosen = NextTokens(logits)
        for index, row in enumerate(rows):
            with self._failing([row]):
                assert row.ticket
                if chosen.take(index, row.ticket):
                    self._leave(row)

    def _leave(self, row: Row, error: Exception | None = None) -> None:
        """The row's ticket ends."""
        if row is self._filling:
            self._filling = None
        self.finish(self._rows.leave(row), error)

    @contextlib.contextmanager
    def _failing(self, rows: Sequence[Row]) -> Iterator[None]:
        """An exception, such as out of memory, ends these rows' tickets and no others."""
        try:
            yield
        except Exception as error:
            logger.exception("generation failed")
            running = [row for row in rows if row.ticket]
            for row in running:
                row.held = 0
            for row in running:
                self._leave(row, error)
