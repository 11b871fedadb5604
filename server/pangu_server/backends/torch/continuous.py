"""Continuous batching: completions join and leave between two steps.

A turn is one forward: the next token of every completion that generates, with guesses to verify where they pay, and as
many tokens of prompts as the turn's budget has: half of them of the oldest prompt, the others of the shortest ones.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pangu_server.backends.schedule import Schedule
from pangu_server.backends.seam import CacheUse, Counts, Draft, TokenLogprobs
from pangu_server.backends.torch.cache import PAGE_TOKENS
from pangu_server.backends.torch.choosing import Choosing, prompt_logprobs
from pangu_server.backends.torch.device_choosing import Download
from pangu_server.backends.torch.drafting import Costs, Lookup, lengths
from pangu_server.backends.torch.prefill import PREFILL_TOKENS, shares
from pangu_server.backends.torch.rows import Part, Row, Rows
from pangu_server.backends.torch.runner import Runner

logger = logging.getLogger(__name__)

TRIED_STEPS, RETRY_STEPS = 16, 128  # steps that guesses are tried for, and of how many, until one is right


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A forward whose tokens have been chosen, and not read yet."""

    parts: Sequence[Part]
    tokens: Download  # one a kept logit
    logprobs: Any  # `Logprobs`, None if none are asked for
    started: float


class ContinuousSchedule(Schedule):
    """Says who gets tokens in a turn."""

    def __init__(
        self,
        runner: Runner,
        choosing: Choosing,
        *,
        max_batch: int,
        on_batch: Callable[[int], None],
        draft: Draft = "prompt",
        costs: Costs | None = None,
    ) -> None:
        super().__init__()
        self._runner, self._choosing, self._on_batch = runner, choosing, on_batch
        self._rows = Rows(runner.cache, max_batch)
        self._page_bytes = runner.cache.nbytes // runner.cache.pages
        self._drafts, self._costs = draft == "prompt", costs or Costs()
        self._flying: Step | None = None  # its tokens are not read yet
        self._quiet = 0  # steps since a guess was right
        self._queries = self._hits = self._preemptions = self._drafted = self._accepted = 0

    def close(self) -> None:
        """See `Schedule`; releases model and cache too."""
        super().close()
        del self._runner, self._rows.cache

    def cache_use(self) -> CacheUse:
        """See `Backend`."""
        pages = self._rows.pages
        held_bytes = (pages.count - pages.free) * self._page_bytes
        return CacheUse(held_bytes=held_bytes, used_fraction=pages.held / pages.count)

    def counts(self) -> Counts:
        """See `Backend`."""
        return Counts(
            prefix_queries=self._queries,
            prefix_hits=self._hits,
            preemptions=self._preemptions,
            drafted=self._drafted,
            accepted=self._accepted,
        )

    def turn(self) -> None:
        """See `Schedule`."""
        try:
            self._turn()
        except Exception:  # the tickets of all rows end with it
            self._flying = None
            for row in list(self._rows.running):
                self._choosing.leave(row.slot)
                self._rows.leave(row, sound=False)
            raise

    def _turn(self) -> None:
        with torch.inference_mode():
            for row in list(self._rows.running):
                if row.ticket.cancelled:
                    self._leave(row)
            if not self._ahead:
                self._land()
            parts = self._plan()
            step, alone = None, self._flying is None
            if parts:
                try:
                    step = self._launch(parts)
                except Exception as error:
                    # Out of memory, or a request that the model fails on: the newest pays, the others go on.
                    logger.exception("a step of %d rows failed; its newest request ends", len(parts))
                    self._leave(max((part.row for part in parts), key=lambda row: row.number), error)
            self._land()
            self._flying = step
            if step and (not self._ahead or any(part.guesses for part in step.parts)):
                self._land(at_once=alone)

    @property
    def _ahead(self) -> bool:
        """Whether the next step starts before the tokens of this one are read: not on a CPU, nor where guesses pay."""
        on_device = self._rows.cache.on_device
        return on_device and not (self._drafts and self._quiet % RETRY_STEPS < TRIED_STEPS)

    def _land(self, *, at_once: bool = False) -> None:
        """Read the tokens of the step that is under way; `at_once`: the time until here is what it took."""
        step, self._flying = self._flying, None
        if step:
            self._settle(step, timed=at_once)

    # ------------------------------------------------------------------ who gets tokens

    def _plan(self) -> list[Part]:
        """The parts of the next step."""
        parts: list[Part] = []
        running = list(self._rows.running)
        guesses = self._guesses([row for row in running if row.pending == 1 and row.draws and not row.flying])
        for row in running:
            if row.ended or row.pending != 1 or (row.flying and row.ticket.remaining <= row.flying):
                continue  # it gave way to an older one, has a prompt, or the last of its work under way
            guess = guesses.get(row, [])
            if self._make_room(row, row.computed + 1 + len(guess), parts):
                parts.append(Part.of(row, 1 + len(guess), guess))
        prompts = [row for row in self._rows.running if row.pending > 1]
        while new := self._admit():
            prompts.append(new)
        for row, count in shares(prompts, PREFILL_TOKENS[self._runner.device.type]).items():
            if count and not row.ended and self._make_room(row, row.computed + count, parts):
                parts.append(Part.of(row, count))
        return [part for part in parts if not part.row.ended]

    def _admit(self) -> Row | None:
        """A row for the first of the queue that no other row computes a beginning of, if there are slot and room."""
        if self._rows.full:
            return None
        with self.changed:
            waiting = list(self.waiting)
        head = next((ticket for ticket in waiting if not self._rows.sharing(ticket)), None)
        if head is None:
            return None
        if self._rows.running and -(-len(head.tokens) // PAGE_TOKENS) + 1 > self._rows.pages.available:
            return None
        first_time = not head.started
        if not self.admit([head]):
            return self._admit()  # cancelled meanwhile
        row = self._rows.claim(head)
        prompt = head.tokens[: head.prompt_tokens]
        try:
            self._choosing.join(row.slot, prompt, head.tokens[head.prompt_tokens :], head.options)
        except Exception as error:  # a token that the model does not have: nobody else's fault
            self._rows.leave(row)
            self.finish(head, error)
            return self._admit()
        if self._drafts:
            row.lookup = Lookup(head.tokens, head.options.prediction)
        if first_time:
            head.cached_tokens = min(row.computed, head.prompt_tokens)
            self._queries += head.prompt_tokens
            self._hits += head.cached_tokens
        return row

    def _make_room(self, row: Row, tokens: int, parts: list[Part]) -> bool:
        """Pages for the first `tokens` tokens of `row`; the newest rows give theirs back. False if it had to itself."""
        while not self._rows.reserve(row, tokens):
            if self._flying:
                self._land()  # it may end some, and a row that gives way goes on from tokens that are known
                if row.ended:
                    return False
                continue
            newest = max(self._rows.running, key=lambda other: other.number)
            self._preempt(newest)
            parts[:] = [part for part in parts if part.row is not newest]
            if newest is row:
                return False
        return True

    def _preempt(self, row: Row) -> None:
        """Put the row back into the queue, before all others: it goes on from the tokens that it has."""
        self._preemptions += 1
        self._choosing.leave(row.slot)
        self._rows.leave(row)
        self.requeue([row.ticket], front=True)

    def _guesses(self, rows: Sequence[Row]) -> dict[Row, list[int]]:
        """The guesses that pay, by row."""
        found = []
        for row in rows:
            most = row.ticket.remaining - 1
            if row.lookup and most > 0 and (guess := row.lookup.guess(most)):
                found.append((row, row.lookup.rate, guess))
        if not found:
            return {}
        others = len(rows) - len(found)
        counts = lengths([rate for _, rate, _ in found] + [0.0] * others, self._costs)
        return {row: guess[:count] for (row, _, guess), count in zip(found, counts, strict=False)}

    # ------------------------------------------------------------------ a step

    def _launch(self, parts: Sequence[Part]) -> Step:
        """Compute the parts and choose their tokens. If it fails, the rows are as they were."""
        started = time.perf_counter()
        self._on_batch(len(parts))
        logits = self._runner.forward(parts)
        at = 0
        chosen: list[int] = []  # rows of the logits
        slots: list[int] = []
        draws: list[int] = []
        tops: list[int | None] = []
        inputs: list[int] = []  # the tokens that they were computed from
        scores: list[tuple[Row, list[TokenLogprobs]]] = []
        for part in parts:
            row, end = part.row, at + part.kept
            if row.ticket.prompt_due and part.kept:
                following = row.ticket.tokens[part.start + 1 : part.start + part.count + 1]
                scores.append((row, prompt_logprobs(logits[at:end], following, row.ticket.options)))
            chosen += range(end - part.choices, end)
            slots += [row.slot] * part.choices
            draws += range(row.draws, row.draws + part.choices)
            tops += [row.ticket.options.logprobs] * part.choices
            if part.choices:
                inputs += [row.ticket.tokens[-1], *part.guesses]
            at = end
        tokens, logprobs = torch.empty(0, dtype=torch.long), None
        if chosen:
            if len(chosen) < len(logits):
                logits = logits[torch.tensor(chosen, device=logits.device)]
            guessed = any(part.guesses for part in parts)
            given = torch.tensor(inputs, device=logits.device) if guessed else None
            tokens = self._choosing.choose(logits, slots, draws, given)
            if any(top is not None for top in tops):
                logprobs = self._choosing.logprobs(logits, tokens, tops)
            if not guessed:  # else some may not come to be
                self._runner.remember(slots, tokens)
                self._choosing.accept(slots, tokens)
        for part in parts:
            part.row.computed = part.start + part.known
            part.row.flying += min(part.choices, 1)
        for row, entries in scores:
            row.prompt_logprobs += entries
        return Step(parts, Download(tokens), logprobs, started)

    def _settle(self, step: Step, *, timed: bool) -> None:
        """Read the tokens of a step and tell the listeners."""
        tokens: list[int] = step.tokens.read().tolist()
        seconds = time.perf_counter() - step.started
        scored: Sequence[TokenLogprobs | None] = (
            step.logprobs.read() if step.logprobs else [None] * len(tokens)
        )
        at, decoded = 0, True
        guessed = any(part.guesses for part in step.parts)
        for part in step.parts:
            row, ticket = part.row, part.row.ticket
            decoded &= part.choices > 0 and part.known == 1
            own = slice(at, at + part.choices)
            at += part.choices
            row.flying -= min(part.choices, 1)
            if row.ended:
                continue
            if not part.last:
                self._rows.share(row)
                continue
            ticket.read = True
            try:
                if ticket.prompt_due:
                    ticket.prompt_due = False
                    ticket.listener.on_prompt(row.prompt_logprobs)
                if not part.choices or self._take(part, tokens[own], scored[own], guessed=guessed):
                    self._leave(row)
                else:
                    self._rows.share(row)
            except Exception as error:  # of the listener: nobody else's
                logger.exception("a listener failed")
                self._leave(row, error)
        self._quiet += 1
        if decoded and timed:
            self._costs.learn(sum(part.count for part in step.parts), seconds)

    def _take(
        self, part: Part, tokens: Sequence[int], scored: Sequence[TokenLogprobs | None], *, guessed: bool
    ) -> bool:
        """Give the row its tokens: those up to the first that was guessed wrong. Whether it is over."""
        row, guesses = part.row, part.guesses
        right = 0
        while right < len(guesses) and guesses[right] == tokens[right]:
            right += 1
        if guesses:
            assert row.lookup
            row.lookup.learn(len(guesses), right)
            row.ticket.drafted += len(guesses)
            self._drafted += len(guesses)
        if guessed:
            taken = torch.tensor(tokens[: right + 1], device=self._runner.device)
            self._choosing.accept([row.slot] * len(taken), taken)
        for index in range(right + 1):
            if index:  # the guess before it was right: it has been computed
                row.computed += 1
                row.ticket.accepted += 1
                self._accepted += 1
                self._quiet = 0
            if row.lookup:
                row.lookup.append(tokens[index])
            if row.ticket.tell(tokens[index], scored[index]):
                return True
        return False

    def _leave(self, row: Row, error: Exception | None = None) -> None:
        """The row's ticket ends."""
        self._choosing.leave(row.slot)
        self._rows.leave(row, sound=error is None)
        self.finish(row.ticket, error)
