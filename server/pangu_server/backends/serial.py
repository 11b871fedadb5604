"""The simplest schedule: one generation at a time, first come first served, on one thread of its own."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pangu_server.backends import Listener, SamplingOptions

logger = logging.getLogger(__name__)

# Generates for one prompt, calls back with each token, ends early when that returns True.
Generate = Callable[[Sequence[int], SamplingOptions, Callable[[int], bool]], None]


class Ticket:
    """One submitted prompt."""

    def __init__(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> None:
        self.prompt_ids, self.options, self.listener = prompt_ids, options, listener
        self.cancelled = False

    def on_token(self, token_id: int) -> bool:
        """Pass the token on, unless cancelled."""
        return self.cancelled or self.listener.on_token(token_id)


class SerialScheduler:
    """Runs `generate` for one ticket after the other."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate
        self._queue: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running: Ticket | None = None
        self._thread = threading.Thread(target=self._work, name="generate", daemon=True)
        self._thread.start()

    def submit(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> Ticket:
        """Append to the queue."""
        ticket = Ticket(prompt_ids, options, listener)
        with self._changed:
            if self._closed:
                raise RuntimeError("submit after close")
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Drop the ticket from the queue, or end it at its next token."""
        ticket.cancelled = True
        with self._changed:
            if ticket not in self._queue:
                return
            self._queue.remove(ticket)
        ticket.listener.on_end(None)

    def close(self) -> None:
        """Cancel all, wait for the running one to notice."""
        with self._changed:
            self._closed = True
            tickets = [*self._queue, *([self._running] if self._running else [])]
            self._changed.notify()
        for ticket in tickets:
            self.cancel(ticket)
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                ticket = self._running = self._queue.popleft()
            error = None
            try:
                ticket.listener.on_start()
                self._generate(ticket.prompt_ids, ticket.options, ticket.on_token)
            except Exception as raised:  # the outermost loop: one failed request must not end the server
                logger.exception("generation failed")
                error = raised
            ticket.listener.on_end(error)
