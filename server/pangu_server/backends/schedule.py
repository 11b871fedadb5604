"""What every backend's schedule shares: tickets, the queue, cancelling, and the thread that takes turns."""

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from pangu_server.backends.sampling import Logits, Sampler, token_logprobs
from pangu_server.backends.seam import Listener, SamplingOptions, TokenLogprobs

logger = logging.getLogger(__name__)


class Ticket:
    """One submitted prompt and what has become of it."""

    def __init__(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> None:
        self.options, self.listener = options, listener
        self.tokens = list(prompt_ids)  # and those generated so far
        self.prompt_tokens = len(self.tokens)
        self.cancelled = False
        self.started = False
        self.cached_tokens = self.drafted = self.accepted = 0
        self.read = False  # its prompt has been computed, or found in the cache
        self.prompt_due = options.prompt_logprobs is not None  # its log-probabilities are still to be told
        self.scored: list[TokenLogprobs | None] = []  # those that are known already
        self._sampler: Sampler | None = None

    @property
    def generated(self) -> int:
        """Number of generated tokens."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Number of tokens that it may still generate."""
        return self.options.max_tokens - self.generated

    def choose(self, logits: Logits) -> int:
        """Draw the next token. Once a position: a seeded draw cannot be taken back."""
        if self._sampler is None:
            self._sampler = Sampler(self.tokens[: self.prompt_tokens], self.options)
        return self._sampler(logits)

    def take(self, token_id: int, logits: Logits | None = None) -> bool:
        """Tell the listener of the next token; whether the generation is over.

        `logits` (vocabulary,) are needed when the options ask for log-probabilities.
        """
        logprobs: TokenLogprobs | None = None
        if self.options.logprobs is not None:
            assert logits is not None
            logprobs = token_logprobs(logits, token_id, self.options.logprobs)
        return self.tell(token_id, logprobs)

    def tell(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """The same for a token whose log-probabilities are known, where they are asked for."""
        self.read = True
        if self.cancelled:
            return True
        self.tokens.append(token_id)
        stop = self.listener.on_token(token_id, logprobs)
        return stop or token_id in self.options.end_token_ids or self.remaining <= 0


class Schedule(ABC):
    """Runs tickets on one thread of its own: `turn` after `turn` while there are any.

    Subclasses say in `turn` which tickets leave the queue and what is computed. `waiting` changes under the
    lock only; `running` belongs to the thread.
    """

    def __init__(self, name: str = "generate") -> None:
        self.waiting: deque[Ticket] = deque()
        self.running: list[Ticket] = []
        self.changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; the constructor of a subclass calls it last."""
        self._thread.start()

    @abstractmethod
    def turn(self) -> None:
        """One unit of work. There is a ticket in `waiting` or in `running`; an exception fails the latter."""

    def submit(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> Ticket:
        """Append to the queue."""
        ticket = Ticket(prompt_ids, options, listener)
        with self.changed:
            if self._closed:
                raise RuntimeError("submit after close")
            self.waiting.append(ticket)
            self.changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Drop the ticket from the queue, or end it at its next token."""
        ticket.cancelled = True
        with self.changed:
            if ticket not in self.waiting:
                return
            self.waiting.remove(ticket)
        _tell_end(ticket, None)

    def close(self) -> None:
        """Cancel all, wait for the running ones to notice."""
        with self.changed:
            self._closed = True
            tickets = [*self.waiting, *self.running]
            self.changed.notify()
        for ticket in tickets:
            self.cancel(ticket)
        self._thread.join()

    # ------------------------------------------------------------------ for `turn`

    def admit(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Move these from the queue to `running`; returns those that had not been cancelled meanwhile.

        One whose listener fails at once has ended.
        """
        with self.changed:
            admitted = [ticket for ticket in tickets if ticket in self.waiting]
            for ticket in admitted:
                self.waiting.remove(ticket)
            self.running += admitted
        return [ticket for ticket in admitted if ticket.started or self._begins(ticket)]

    def _begins(self, ticket: Ticket) -> bool:
        ticket.started = True
        try:
            ticket.listener.on_start()
        except Exception as error:  # of the listener: nobody else's
            logger.exception("a listener failed")
            self.finish(ticket, error)
            return False
        return True

    def requeue(self, tickets: Sequence[Ticket], *, front: bool = False) -> None:
        """Move these from `running` to the end (or front) of the queue, to go on from the tokens they have."""
        with self.changed:
            going_on = [ticket for ticket in tickets if not ticket.cancelled]
            for ticket in going_on:
                self.running.remove(ticket)
            if front:
                self.waiting.extendleft(reversed(going_on))
            else:
                self.waiting += going_on
        for ticket in tickets:
            if ticket not in going_on:
                self.finish(ticket)

    def finish(self, ticket: Ticket, error: Exception | None = None) -> None:
        """Remove from `running` and tell the listener."""
        with self.changed:
            self.running.remove(ticket)
        _tell_end(ticket, error)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.running or self._closed)
                if self._closed and not self.running:
                    return
            self.attempt()

    def attempt(self, paused: Sequence[Ticket] = ()) -> None:
        """A turn. If it fails, so do those that run, but for the `paused` ones."""
        try:
            self.turn()
        except Exception as error:  # a failed batch must not end the server
            logger.exception("generation failed")
            if len(self.running) == len(paused):  # it never got further than choosing: not the same for ever
                self.admit(list(self.waiting)[:1])
            for ticket in [ticket for ticket in self.running if ticket not in paused]:
                self.finish(ticket, error)


def _tell_end(ticket: Ticket, error: Exception | None) -> None:
    try:
        ticket.listener.on_end(error)
    except Exception:  # it has ended all the same
        logger.exception("a listener failed")
