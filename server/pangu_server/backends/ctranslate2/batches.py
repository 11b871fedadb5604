"""Batches for an engine that cannot add to a running one: which tickets go together, and for how long.

The engine prefills a batch up to its shortest row; what the longer ones have more passes through its decoding
loop token by token ("forced" steps) while the shorter rows already generate. Rows of far apart lengths are faster
one after the other: `CostModel` decides. A batch is interrupted when others have waited for long enough, and its
tickets go on later from the tokens that they have.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence

from pangu_server.backends.sampling import Logits, Sampler, token_logprobs
from pangu_server.backends.schedule import Schedule, Ticket

# A batch runs undisturbed for this long, and for this many times what resuming it would cost: interruptions
# take at most an eighth of the time.
QUANTUM_SECONDS, QUANTUM_RESUMES = 0.25, 8
EXPECTED_TOKENS = 64  # assumed of a row that may generate more: many end long before their limit

Row = tuple[int, float]  # tokens there are, tokens that are expected to come


class CostModel:
    """Predicts the seconds of a batch from four figures that it learns from what has run.

    It starts from the ratios of a small model on a CPU: prefilling a token costs a tenth of a step, and a further
    row a tenth of the first. A step of 20 ms only has to be of the right order until the first one is measured.
    """

    def __init__(self) -> None:
        self.step_seconds = 0.02  # of a single row
        self.row_share = 0.1  # what a further row adds, of a single row's step: 0 to 1
        self.prefill_seconds = 0.002  # a token
        self.draft_tokens = 4.0  # of a row that `Sampler` draws, until it disagrees with the engine
        self._learned = False

    def step(self, rows: int) -> float:
        """Seconds of one step of `rows` rows."""
        return self.step_seconds * (1 + self.row_share * (rows - 1))

    def batch(self, tickets: Sequence[Ticket]) -> float:
        """Seconds of a batch from its start to the end of its last row."""
        rows = [self._row(ticket) for ticket in tickets]
        shortest = min(length for length, _ in rows)
        seconds, done = self.prefill_seconds * shortest * len(rows), 0.0
        for ended, steps in enumerate(sorted(length - shortest + new for length, new in rows)):
            seconds += (steps - done) * self.step(len(rows) - ended)
            done = steps
        return seconds

    def _row(self, ticket: Ticket) -> Row:
        most = self.draft_tokens if is_own(ticket) else EXPECTED_TOKENS
        return len(ticket.tokens), min(ticket.remaining, most)

    def learn_step(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`."""
        if rows == 1 or not self._learned:
            single = seconds / (1 + self.row_share * (rows - 1))
            if not self._learned:  # the rest keeps its ratio to it
                self.prefill_seconds *= single / self.step_seconds
                self.step_seconds = single
                self._learned = True
            self.step_seconds += (single - self.step_seconds) / 16
        else:
            share = (seconds / self.step_seconds - 1) / (rows - 1)
            self.row_share += (min(1.0, max(0.0, share)) - self.row_share) / 16

    def learn_prefill(self, tokens: int, rows: int, seconds: float) -> None:
        """The first step of `rows` rows took `seconds`, with the prefill of `tokens` tokens in it."""
        each = (seconds - self.step(rows)) / tokens
        if each > 0:  # else the prefill was too short to be seen
            self.prefill_seconds += (each - self.prefill_seconds) / 4

    def learn_draft(self, tokens: int) -> None:
        """A row that `Sampler` draws went on for `tokens` before it ended or disagreed."""
        self.draft_tokens += (tokens - self.draft_tokens) / 16


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
        over: Callable[[float], bool] = lambda quantum: False,
    ) -> None:
        """`over(quantum)` is asked after each step whether others want their turn after `quantum` seconds."""
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
        self._costs, self._over = costs, over
        self._started = self._stepped = time.perf_counter()

    def quantum(self) -> float:
        """Seconds that must pass between two interruptions of what is left of this batch."""
        left = [len(ticket.tokens) for ticket in self.tickets if ticket not in self.ended]
        return max(QUANTUM_SECONDS, QUANTUM_RESUMES * self._resume_seconds(left))

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
        stop = ended or chosen != token_id  # the engine would go on with its own token
        if stop:
            self._alive.remove(row)
            if is_own(ticket):
                self._costs.learn_draft(step + 1 - self._first_steps[row])
        if row == self._rows[-1] and self._alive:
            self._check()
        return stop

    def _begin(self, step: int, read_logits: Callable[[], Logits] | None) -> None:
        now = time.perf_counter()
        if self._step < 0:
            shortest = len(self.tickets[-1].tokens)
            self._costs.learn_prefill(shortest * len(self.tickets), len(self.tickets), now - self._stepped)
        else:
            self._costs.learn_step(len(self._alive), (now - self._stepped) / (step - self._step))
        self._step, self._stepped, self._rows = step, now, list(self._alive)
        self._logits = read_logits() if self.needs_logits and read_logits is not None else None

    def _check(self) -> None:
        """After a step: is it better to end the batch here?"""
        resume = self._resume_seconds([len(self.tickets[row].tokens) for row in self._alive])
        # Nothing but forced steps, which have no callback: a prefill can be faster.
        forced = self._first_steps[self._alive[-1]] - (self._step + 1)
        if forced * self._costs.step(len(self._alive)) > resume:
            raise Interrupted
        quantum = max(QUANTUM_SECONDS, QUANTUM_RESUMES * resume)
        self.yielded = self._over(quantum)
        stopped = len(self._alive) + len(self.ended) < len(
            self.tickets
        )  # rows that have to be prefilled again
        if self.yielded or (stopped and self._stepped - self._started > quantum):
            raise Interrupted

    def _resume_seconds(self, lengths: Sequence[int]) -> float:
        return self._costs.prefill_seconds * len(lengths) * min(lengths, default=0)


class BatchSchedule(Schedule):
    """A turn is a batch. Tickets go together when the engine draws them alike and it saves time."""

    def __init__(self, max_batch: int) -> None:
        super().__init__()
        self.costs = CostModel()
        self._max_batch = max_batch
        self._served_since = time.perf_counter()  # when those that run now were last preferred to others

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Run the engine on `batch`; returns when all rows have ended or been interrupted."""

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
        batch = Batch(tickets, self.costs, self._over)
        self.run(batch)
        for ticket in batch.ended:
            self.finish(ticket)
        left = [ticket for ticket in tickets if ticket not in batch.ended]
        # Those that only have to be prefilled again keep their place.
        yields = not left or batch.yielded or self._over(batch.quantum())
        self.requeue(left, front=not yields)
        if yields:
            self._served_since = time.perf_counter()

    def choose(self, waiting: Sequence[Ticket]) -> list[Ticket]:
        """The head of `waiting`, and those that are drawn like it as long as each of them saves time.

        The nearest in length come first, not the oldest: a batch grows by small gaps.
        """
        head, *others = waiting
        if is_read(head):
            return [head]
        chosen, seconds = [head], self.costs.batch([head])
        kind = batch_kind(head)
        alike = [ticket for ticket in others if not is_read(ticket) and batch_kind(ticket) == kind]
        for ticket in sorted(alike, key=lambda ticket: abs(len(ticket.tokens) - len(head.tokens))):
            if len(chosen) == self._max_batch:
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
            ticket.prompt_due = False
            ended = ended or ticket.take(ticket.choose(logits[-1]), logits[-1])
        if ended:
            self.finish(ticket)
        else:
            self.requeue([ticket], front=True)

    def _over(self, quantum: float) -> bool:
        return bool(self.waiting) and time.perf_counter() - self._served_since >= quantum


def is_read(ticket: Ticket) -> bool:
    """Whether the prompt is read before, or instead of, generating."""
    return ticket.prompt_due or ticket.remaining <= 0


def is_own(ticket: Ticket) -> bool:
    """Whether `Sampler` must draw: the engine has no seed of a request, no min_p, and changes no logits."""
    options = ticket.options
    drawn = options.temperature > 0 and (options.seed is not None or options.min_p > 0)
    return drawn or Sampler.changes_logits(options)


def batch_kind(ticket: Ticket) -> object:
    """Tickets of equal kind can be rows of one batch.

    Prompts of one token have batches of their own: in a batch with one, CTranslate2 4.8 does not force the
    tokens of the longer prompts.
    """
    return native_sampling(ticket), len(ticket.tokens) == 1


def native_sampling(ticket: Ticket) -> tuple[float, float, int] | None:
    """Temperature, top-p and top-k that the engine draws with; None: the best token.

    A batch shares them. What `Sampler` draws is drafted by the best token.
    """
    options = ticket.options
    if options.temperature == 0 or is_own(ticket):
        return None
    return options.temperature, options.top_p, options.top_k
