"""Continuous batching for the torch backend: completions join and leave between two steps.

The first rows of the cache are those that decode, all in one forward a step; behind them are the one
whose prompt is being computed and those that ended, kept because the next prompt may begin like them.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pangu_server.backends.sampling import Sampler
from pangu_server.backends.schedule import Schedule, Ticket
from pangu_server.backends.seam import CacheUse, TokenLogprobs
from pangu_server.backends.torch.cache import Slots

logger = logging.getLogger(__name__)

# Prompt tokens a turn: the others wait for no more than these between two of their tokens. A CPU is at full
# speed with so few (SmolLM2-135M, one thread: 512 tokens take 1.5 s in pieces of 128, 2.0 s in pieces of 64,
# 1.4 s in pieces of 256); a GPU computes some hundred in the time of one.
PREFILL_TOKENS = {"cpu": 128, "cuda": 512}
# What the cache may hold only because a later prompt may begin like an earlier one.
KEPT_BYTES = 1 << 30


@dataclass(eq=False, slots=True)
class Row:
    """One row of the cache: what it holds and for whom."""

    ticket: Ticket | None = None  # None: idle
    tokens: list[int] = field(default_factory=list)  # the ticket's, or those of the one that ended
    held: int = 0  # so many of them have keys and values
    left_at: int = 0  # the turn in which its last ticket ended
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)  # of those before `held`


class ContinuousSchedule(Schedule):
    """Each turn computes a piece of the prompts that wait, then one token of every completion that runs."""

    def __init__(
        self, model: Any, *, max_batch: int, context_length: int, on_batch: Callable[[int], None]
    ) -> None:
        super().__init__()
        model.set_attn_implementation("sdpa")  # which the masks of the cache are for
        self._model, self._on_batch = model, on_batch
        self._max_batch, self._context_length = max_batch, context_length
        self._slots = Slots(max_batch, context_length)
        self._rows: list[Row] = []
        self._decoding = 0  # so many of the first rows
        self._filling: Row | None = None  # the one whose prompt is computed now
        self._turns = 0
        self.start()

    def close(self) -> None:
        """See `Schedule`; releases model and cache too."""
        super().close()
        self._slots.clear()
        del self._model

    def cache_use(self) -> CacheUse:
        """See `Backend`."""
        used = sum(row.held for row in list(self._rows) if row.ticket)
        return CacheUse(
            held_bytes=self._slots.held_bytes,
            used_fraction=used / (self._max_batch * self._context_length),
        )

    def turn(self) -> None:
        """See `Schedule`."""
        self._turns += 1
        try:
            with torch.inference_mode():
                for row in list(self._rows):
                    if row.ticket and row.ticket.cancelled:
                        self._leave(row)
                self._prefill()
                if self._decoding:
                    self._decode()
        except Exception:  # none that `_failing` foresees: the thread ends all tickets
            self._reset()
            raise
        if not self.running and self._slots.held_bytes > KEPT_BYTES:
            self._reset()

    def _reset(self) -> None:
        self._slots.clear()
        self._rows.clear()
        self._filling, self._decoding = None, 0

    # ------------------------------------------------------------------ prompts

    def _prefill(self) -> None:
        left = PREFILL_TOKENS[self._model.device.type]
        while left > 0:
            if self._filling is None and not self._start():
                return
            if row := self._filling:
                with self._failing([row]):
                    left -= self._fill(row, left)

    def _start(self) -> bool:
        """Give the next waiting ticket a row, with the keys and values that another one has already."""
        with self.changed:
            head = list(self.waiting)[: self._max_batch - len(self.running)][:1]
        admitted = self.admit(head)
        for ticket in admitted:
            # The last token is always computed, and all are when their log-probabilities are asked for.
            wanted = [] if ticket.prompt_due else ticket.tokens[:-1]
            common, source = max(
                ((_common(row.tokens[: row.held], wanted), row) for row in self._rows),
                key=lambda pair: (pair[0], pair[1].ticket is None),
                default=(0, Row()),
            )
            row = self._row_for(source, common)
            row.ticket, row.tokens, row.held, row.prompt_logprobs = ticket, ticket.tokens, 0, [None]
            self._filling = row
            with self._failing([row]):
                self._slots.reserve(len(self._rows), common)
                if common and source is not row:
                    self._slots.copy(self._rows.index(source), self._rows.index(row), common)
                self._slots.wipe(self._rows.index(row), common)
                row.held = common
        return bool(admitted)

    def _row_for(self, source: Row, common: int) -> Row:
        """An idle row: `source` itself when little is lost with it, else a new one, else the oldest."""
        idle = [row for row in self._rows if row.ticket is None]
        if source in idle and 2 * common >= source.held:
            return source
        roomy = len(self._rows) < self._slots.rows or 2 * self._slots.held_bytes <= KEPT_BYTES
        if not idle or (roomy and len(self._rows) < self._max_batch):
            self._rows.append(Row())
            return self._rows[-1]
        return min(idle, key=lambda row: row.left_at)

    def _fill(self, row: Row, limit: int) -> int:
        """Compute up to `limit` more tokens of the prompt; returns how many it was."""
        ticket, start = row.ticket, row.held
        assert ticket
        end = min(start + limit, len(row.tokens))
        done = end == len(row.tokens)
        if start == end - 1 and done and ticket.remaining and not ticket.prompt_due:
            self._promote(row)  # one token is what the decode step computes, for all rows at once
            return 0
        logits = self._forward(
            self._rows.index(row), [row.tokens[start:end]], [start], keep=0 if ticket.prompt_due else 1
        )[0]
        row.held = end
        if ticket.prompt_due:
            assert ticket.options.prompt_logprobs is not None
            following = row.tokens[start + 1 : end + 1]
            row.prompt_logprobs += _logprobs(logits, following, ticket.options.prompt_logprobs)
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
        self._swap(self._rows.index(row), self._decoding)
        self._decoding += 1

    # ------------------------------------------------------------------ new tokens

    def _decode(self) -> None:
        rows = self._rows[: self._decoding]
        self._on_batch(len(rows))
        with self._failing(rows):
            last, positions = [row.tokens[-1:] for row in rows], [row.held for row in rows]
            logits = self._forward(0, last, positions, keep=1)[:, -1]
            for row in rows:
                row.held += 1
            self._take(rows, logits)

    def _take(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Choose the next token of each row. `logits` has shape (rows, vocabulary)."""
        best = logits.argmax(-1).tolist()
        for index, row in enumerate(rows):
            with self._failing([row]):
                ticket = row.ticket
                assert ticket
                if Sampler.is_argmax(ticket.options) and ticket.options.logprobs is None:
                    over = ticket.take(best[index])
                else:
                    values = logits[index].cpu().numpy()
                    over = ticket.take(ticket.choose(values), values)
                if over:
                    self._leave(row)

    def _forward(
        self, first_row: int, ids: Sequence[Sequence[int]], starts: Sequence[int], *, keep: int
    ) -> torch.Tensor:
        """Logits (rows, tokens, vocabulary) in float32 for `ids` from the positions `starts` on.

        Rows are those from `first_row` on; tokens the last `keep`, or all for 0.
        """
        count, device = len(ids[0]), self._model.device
        length = max(starts) + count
        self._slots.reserve(len(self._rows), length)
        positions = torch.tensor([range(start, start + count) for start in starts], device=device)
        output = self._model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=self._slots.select(first_row, positions, length),
            position_ids=positions,
            past_key_values=self._slots,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        return logits.float()

    # ------------------------------------------------------------------ rows

    def _swap(self, first: int, second: int) -> None:
        rows = self._rows
        length = max(rows[first].held, rows[second].held)
        if first != second and length:
            self._slots.swap(first, second, length)
        rows[first], rows[second] = rows[second], rows[first]

    def _leave(self, row: Row, error: Exception | None = None) -> None:
        """The row's ticket ends; what the row holds stays for others."""
        ticket, row.ticket, row.left_at = row.ticket, None, self._turns
        assert ticket
        if row is self._filling:
            self._filling = None
        index = self._rows.index(row)
        if index < self._decoding:
            self._decoding -= 1
            self._swap(index, self._decoding)
        self.finish(ticket, error)

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


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the common prefix."""
    length = 0
    for a, b in zip(held, wanted, strict=False):
        if a != b:
            break
        length += 1
    return length


def _logprobs(logits: torch.Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """One entry per token; `logits` (at least as many, vocabulary) are those before each."""
    # In single precision it would round by up to 2e-5 a token.
    logs = logits[: len(token_ids)].double().log_softmax(-1)
    chosen = logs.gather(1, torch.tensor(token_ids, device=logs.device)[:, None])[:, 0].tolist()
    values, best = (tensor.tolist() for tensor in logs.topk(min(top, logs.shape[1])))
    return [
        TokenLogprobs(logprob, tuple(zip(ids, row, strict=True)))
        for logprob, ids, row in zip(chosen, best, values, strict=True)
    ]
