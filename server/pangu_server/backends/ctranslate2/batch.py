"""One batch of CTranslate2's library while it runs. See `batches` for which requests it holds, and for how long."""

import time
from collections.abc import Callable, Sequence

from pangu_server.backends.ctranslate2.costs import CostModel
from pangu_server.backends.ctranslate2.drawing import is_own
from pangu_server.backends.sampling import Logits
from pangu_server.backends.schedule import Ticket

# While others wait, a batch goes on for at least this, and this many times what letting them run costs.
QUANTUM_SECONDS, QUANTUM_COSTS = 0.25, 2
# A batch whose logits take so much for each of its first rows is interrupted, and prefilled again.
KEPT_BYTES, KEPT_ROWS = 128 << 20, 4


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
        self._kept_bytes = 0  # of logits: the library keeps those of each step until the batch ends
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
        self._kept_bytes += 0 if self._logits is None else self._logits.nbytes

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
        if self._kept_bytes > KEPT_BYTES * min(len(self.tickets), KEPT_ROWS):
            raise Interrupted
        if self.yielded or (stopped and self._stepped - self._started > quantum(self.prefill_seconds)):
            raise Interrupted
