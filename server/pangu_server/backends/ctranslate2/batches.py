"""Batches for an engine that cannot add to a running one: which tickets go together, and for how long.

The engine prefills a batch up to its shortest row; what the longer ones have more passes through its decoding
loop token by token ("forced" steps) while the shorter rows already generate. Rows of far apart lengths are faster
one after the other: `CostModel` decides.

Nobody waits for another one's whole generation. After each step a batch may have to let the head of the queue run:

* It pauses inside the engine's callback while the head, and those that go with it, run on a second worker. It loses
  nothing. The head waits for twice its own predicted cost, so who pauses keeps two thirds of the time.
* The second batch may take what was predicted for it, or, if that is longer, twice the sum of its prefill, which it
  will need again, and of the next one's cost. Then it is interrupted, unless it will soon have ended. Its tickets go
  to the end of the queue, with the tokens that they have.

A prefill cannot be interrupted.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence

from pangu_server.backends.ctranslate2.batch import Batch, quantum
from pangu_server.backends.ctranslate2.costs import CostModel
from pangu_server.backends.ctranslate2.drawing import batch_kind
from pangu_server.backends.ctranslate2.reading import Reading
from pangu_server.backends.sampling import Logits, token_logprobs
from pangu_server.backends.schedule import Schedule, Ticket


class BatchSchedule(Schedule):
    """A turn is a batch. Tickets go together when the engine draws them alike and it saves time."""

    def __init__(self, max_batch: int, on_batch: Callable[[int], None] = lambda rows: None) -> None:
        super().__init__()
        self.costs = CostModel()
        self._max_batch, self._on_batch = max_batch, on_batch
        self.piece = 1 << 30  # positions whose logits are held at once
        self._paused: list[Ticket] = []
        self._yielded = True  # the last batch made room for others
        self._served_since = 0.0  # when those that run now were last preferred to others

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Run the engine on `batch`; returns when all rows have ended or been interrupted.

        Called inside `batch.take` it must run another batch meanwhile, on a second worker; never more than one.
        """

    @abstractmethod
    def forward(self, token_ids: Sequence[int]) -> Logits:
        """Logits of a whole text, shape (tokens, vocabulary): row t is about the token after t."""

    def turn(self) -> None:
        """See `Schedule`."""
        with self.changed:
            waiting = list(self.waiting)
        tickets = self.admit(self.choose(waiting))
        if not tickets:
            return
        if is_read(tickets[0]):
            self._read(tickets[0])
            return
        if self._yielded:
            self._served_since = time.perf_counter()
        predicted = self.costs.batch(tickets)

        def over() -> bool:
            if self._paused:
                return batch.long_to_go() and self._due(batch.prefill_seconds, predicted)
            if self._due():
                self._run_others()
            return False

        batch = Batch(tickets, self.costs, over, self.finish)
        self._on_batch(len(tickets))
        self.run(batch)
        left = [ticket for ticket in tickets if ticket not in batch.ended]
        # Those that only have to be prefilled again keep their place.
        self._yielded = not left or batch.yielded or self._due()
        self.requeue(left, front=not self._yielded)

    def choose(self, waiting: Sequence[Ticket]) -> list[Ticket]:
        """The head of `waiting`, and those that are drawn like it as long as each of them saves time.

        The nearest in length come first, not the oldest: a batch grows by small gaps.
        """
        head, *others = waiting
        if is_read(head):
            return [head]
        most = max(1, self._max_batch - len(self.running))  # of those that pause each has its row
        chosen, seconds = [head], self.costs.batch([head])
        kind = batch_kind(head)
        alike = [ticket for ticket in others if not is_read(ticket) and batch_kind(ticket) == kind]
        for ticket in sorted(alike, key=lambda ticket: abs(len(ticket.tokens) - len(head.tokens))):
            if len(chosen) == most:
                break
            together = self.costs.batch([*chosen, ticket])
            if together <= seconds + self.costs.batch([ticket]):
                chosen.append(ticket)
                seconds = together
        return chosen

    def _read(self, ticket: Ticket) -> None:
        """Tell of the prompt's log-probabilities. The first new token comes from the same pass."""
        ended, last = ticket.remaining <= 0, None
        if ticket.prompt_due:
            last = self._read_on(ticket) if ticket.scored else self._read_head(ticket)
        if last is not None:
            ticket.listener.on_prompt(ticket.scored)
            ticket.prompt_due, ticket.scored, ticket.read = False, [], True
            ended = ended or ticket.take(ticket.choose(last), last)
        if ended and not ticket.prompt_due:
            self.finish(ticket)
        else:
            self._yielded = self._due()
            self.requeue([ticket], front=not self._yielded)

    def _read_head(self, ticket: Ticket) -> Logits | None:
        """Score the first tokens, as many as memory allows. The logits after the prompt, if that is all of it."""
        top = ticket.options.prompt_logprobs
        assert top is not None
        logits = self.forward(ticket.tokens[: self.piece])
        following = zip(logits, ticket.tokens[1:], strict=False)
        ticket.scored = [None, *(token_logprobs(row, token_id, top) for row, token_id in following)]
        return logits[-1].copy() if len(logits) == len(ticket.tokens) else None

    def _read_on(self, ticket: Ticket) -> Logits | None:
        """Score some more, as `_read_head`."""
        if self._yielded:
            self._served_since = time.perf_counter()

        def over() -> bool:
            if self._due() and not self._paused:
                self._run_others()
            return bool(self._paused) and self._due()

        # An entry needs the logits of two rows.
        reading = Reading(ticket, len(ticket.scored), max(1, self.piece // 2), self.costs, over)
        self.run(reading)
        ticket.scored += reading.entries
        return reading.last

    def _run_others(self) -> None:
        """A turn for others, while those that run pause."""
        self._paused, self._yielded = list(self.running), True
        self.attempt(self._paused)
        self._paused, self._served_since = [], time.perf_counter()

    def _due(self, lost_seconds: float = 0.0, least_seconds: float = 0.0) -> bool:
        """Whether others should run now. Those that run have `least_seconds`, and lose `lost_seconds` by it."""
        with self.changed:
            head = self.waiting[0] if self.waiting else None
        if head is None and not self._paused:
            return False
        cost = lost_seconds if head is None else lost_seconds + self.costs.batch([head])
        return time.perf_counter() - self._served_since >= max(least_seconds, quantum(cost))


def is_read(ticket: Ticket) -> bool:
    """Whether the prompt is read before, or instead of, generating."""
    return ticket.prompt_due or ticket.remaining <= 0
