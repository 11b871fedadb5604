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

from pangu_server.backends.ctranslate2.costs import CostModel
from pangu_server.backends.ctranslate2.drawing import batch_kind, is_own
from pangu_server.backends.sampling import Logits, token_logprobs
from pangu_server.backends.schedule import Schedule, Ticket

# While others wait, a batch goes on for at least this, and this many times what letting them run costs.
QUANTUM_SECONDS, QUANTUM_COSTS = 0.25, 2


def quantum(cost_seconds: float) -> float:
    """Seconds that a batch goes on while others wait, if a change costs `cost_seconds`."""
    return max(QUANTUM_SECONDS, QUANTUM_COSTS * cost_seconds)


class Interrupted(Exception):
    """Raised out of the engine's callback: the batch ends here, also for rows that the callback cannot stop."""


class Batch:
    """One batch while it runs: takes each token the engine draws and says when a row or all of it ends.

    The engine's rows are `tickets`, longest first. After every step it calls `take` for each row that generates,
    in this order, and leaves rows out after `take` returned True.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        costs: CostModel,
        over: Callable[[], bool] = lambda: False,
        finish: Callable[[Ticket], None] = lambda ticket: None,
    ) -> None:
        """`over` is asked after each step: is the batch to end here for others? It may let them run meanwhile.

        `finish` is told of each ticket that has ended.
        """
        self.tickets = sorted(tickets, key=lambda ticket: len(ticket.tokens), reverse=True)
        self.ended: list[Ticket] = []
        self.yielded = False  # to others, as `over` said
        self.max_tokens = max(ticket.remaining for ticket in tickets)
        self.needs_logits = any(
            is_own(ticket) or ticket.options.logprobs is not None for ticket in self.tickets
        )
        lengths = [len(ticket.tokens) for ticket in self.tickets]
        self._first_steps = [length - lengths[-1] for length in lengths]  # those before are forced
        self._alive = list(range(len(tickets)))
        self._rows = self._alive  # of the current step: also those that end in it
        self._step = -1
        self._logits: Logits | None = None
        self._costs, self._over, self._finish = costs, over, finish
        self.prefill_seconds = costs.prefill(lengths[-1], len(lengths))
        self._started = self._stepped = time.perf_counter()

    def take(
        self, row: int, step: int, token_id: int, read_logits: Callable[[], Logits] | None = None
    ) -> bool:
        """The engine drew `token_id` for `row`; whether it must end that row.

        `read_logits` gives those of all rows of the step, shape (rows, vocabulary), when `needs_logits`.

        Raises:
            Interrupted: the whole batch must end.
        """
        if step != self._step:
            self._begin(step, read_logits)
        ticket = self.tickets[row]
        logits = None if self._logits is None else self._logits[self._rows.index(row)]
        chosen = token_id
        if is_own(ticket):
            assert logits is not None
            chosen = ticket.choose(logits)
        ended = ticket.take(chosen, logits)
        if ended:
            self.ended.append(ticket)
            self._finish(ticket)
        stop = ended or chosen != token_id  # the engine would go on with its own token
        if stop:
            self._alive.remove(row)
            if is_own(ticket):
                self._costs.learn_draft(step + 1 - self._first_steps[row])
        if row == self._rows[-1] and self._alive:
            self._check()
        return stop

    def long_to_go(self) -> bool:
        """Whether going on can take longer than prefilling again."""
        return self._steps_cost_more(max(self.tickets[row].remaining for row in self._alive))

    def _steps_cost_more(self, steps: int) -> bool:
        rows = len(self._alive)
        shortest = min(len(self.tickets[row].tokens) for row in self._alive)
        return steps * self._costs.step(rows) > self._costs.prefill(shortest, rows)

    def _begin(self, step: int, read_logits: Callable[[], Logits] | None) -> None:
        now = time.perf_counter()
        if self._step < 0:
            shortest = len(self.tickets[-1].tokens)
            self._costs.learn_prefill(shortest, len(self.tickets), now - self._stepped)
        else:
            self._costs.learn_step(len(self._alive), (now - self._stepped) / (step - self._step))
        self._step, self._stepped, self._rows = step, now, list(self._alive)
        self._logits = read_logits() if self.needs_logits and read_logits is not None else None

    def _check(self) -> None:
        """After a step: is it better to end the batch here?"""
        # Nothing but forced steps, which have no callback: a prefill can be faster.
        if self._steps_cost_more(self._first_steps[self._alive[-1]] - (self._step + 1)):
            raise Interrupted
        asked = time.perf_counter()
        self.yielded = self._over()
        paused = time.perf_counter() - asked
        self._started, self._stepped = self._started + paused, self._stepped + paused
        stopped = len(self._alive) + len(self.ended) < len(self.tickets)  # rows to be prefilled again
        if self.yielded or (stopped and self._stepped - self._started > quantum(self.prefill_seconds)):
            raise Interrupted


class BatchSchedule(Schedule):
    """A turn is a batch. Tickets go together when the engine draws them alike and it saves time."""

    def __init__(self, max_batch: int, on_batch: Callable[[int], None] = lambda rows: None) -> None:
        super().__init__()
        self.costs = CostModel()
        self._max_batch, self._on_batch = max_batch, on_batch
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
        top = ticket.options.prompt_logprobs
        ended = ticket.remaining <= 0
        if top is not None:
            logits = self.forward(ticket.tokens)
            following = zip(logits[:-1], ticket.tokens[1:], strict=True)
            scored = (token_logprobs(row, token_id, top) for row, token_id in following)
            ticket.listener.on_prompt([None, *scored])
            ticket.prompt_due, ticket.read = False, True
            ended = ended or ticket.take(ticket.choose(logits[-1]), logits[-1])
        if ended:
            self.finish(ticket)
        else:
            self.requeue([ticket], front=True)

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
