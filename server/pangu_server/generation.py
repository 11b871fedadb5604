"""A request that was admitted: its choices, read as they come; its deadline, and cancelling it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from pangu_server.backends.seam import Backend, SamplingOptions
from pangu_server.completion import Completion, Delta, Load, Publish
from pangu_server.text import TextOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What a request asks for, for each of its prompts. `sampling` has no end tokens yet."""

    sampling: SamplingOptions
    n: int = 1
    best_of: int = 1  # this many completions, of which the n most probable are the answer
    fit: bool = False  # `max_tokens` is lowered to what the context has room for
    text: TextOptions = field(default_factory=TextOptions)
    stop_token_ids: tuple[int, ...] = ()  # they end a completion too
    ignore_eos: bool = False
    stream: bool = False
    decode_seconds: float = float("inf")  # after the first token; then the next line end is the last


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and its text when the answer is to begin with it."""

    ids: Sequence[int]
    echo: str | None = None


class Generation:
    """All completions of a request: `best_of` for each prompt, numbered prompt by prompt.

    Iterate over it once; `cancel` it in any case when done, or when nobody reads on.
    """

    def __init__(
        self,
        backend: Backend,
        options: GenerationOptions,
        loop: asyncio.AbstractEventLoop,
        completions: Callable[[Publish], list[Completion]],
        *,
        load: Load,
        held_bytes: int,
        seconds: float,
    ) -> None:
        """Submit what `completions` makes. `loop` reads the result; it ends after `seconds`.

        `held_bytes` is counted in `load` until `cancel`.
        """
        self.options = options
        self._backend, self._loop, self._over = backend, loop, False
        self._events: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self.completions = completions(self._publish)
        self._load, self._held_bytes = load, held_bytes
        load.hold(held_bytes)
        load.add(waiting=len(self.completions), running=0)
        for completion in self.completions:
            completion.ticket = backend.submit(completion.prompt_ids, completion.sampling, completion)
        self._timer: asyncio.TimerHandle | None = None
        loop.call_soon_threadsafe(self._start_timer, seconds)

    @property
    def prompt_tokens(self) -> int:
        """Of each prompt once."""
        return sum(len(one.prompt_ids) for one in self.completions[:: self.options.best_of])

    @property
    def completion_tokens(self) -> int:
        """Tokens generated up to now, end tokens included."""
        return sum(completion.completion_tokens for completion in self.completions)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were in the cache when the request came. Further choices of a prompt find its own."""
        return sum(one.ticket.cached_tokens for one in self.completions[:: self.options.best_of])

    @property
    def drafted_tokens(self) -> int:
        """Tokens that were guessed for it up to now."""
        return sum(completion.ticket.drafted for completion in self.completions)

    @property
    def accepted_tokens(self) -> int:
        """Of the guessed tokens those that became part of an answer."""
        return sum(completion.ticket.accepted for completion in self.completions)

    @property
    def ttft_seconds(self) -> float | None:
        """Arrival to the first token of any choice."""
        return _least(completion.timings.ttft_seconds for completion in self.completions)

    @property
    def queue_seconds(self) -> float | None:
        """Arrival to the start of the first choice."""
        return _least(completion.timings.queue_seconds for completion in self.completions)

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        """Pieces of the choices, all that have come since the last ones, until each choice has ended.

        Raises:
            GenerationFailed: the backend did.
            DeadlineExceeded: the time was over before a choice had any text.
        """
        unfinished = len(self.completions)
        while unfinished:
            events = [await self._events.get()]
            while not self._events.empty():
                events.append(self._events.get_nowait())
            deltas = [event for event in events if isinstance(event, Delta)]
            if deltas:
                yield deltas
            for event in events:
                if isinstance(event, Exception):
                    raise event
            unfinished -= sum(delta.finish_reason is not None for delta in deltas)

    def best(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Of whole completions in order the `n` of each prompt with the highest mean log-probability."""
        n, best_of = self.options.n, self.options.best_of
        if n == best_of:
            return list(deltas)

        def mean_logprob(delta: Delta) -> float:
            completion = self.completions[delta.index]
            return completion.logprob_sum / max(1, completion.completion_tokens)

        chosen = []
        for first in range(0, len(deltas), best_of):
            chosen += sorted(deltas[first : first + best_of], key=mean_logprob, reverse=True)[:n]
        return [replace(delta, index=index) for index, delta in enumerate(chosen)]

    def cancel(self) -> None:
        """Stop what has not ended. Frees the timer too."""
        self._load.hold(-self._held_bytes)
        self._held_bytes, self._over = 0, True
        if self._timer is not None:
            self._timer.cancel()
        for completion in self.completions:
            if not completion.ended:
                self._backend.cancel(completion.ticket)

    def _start_timer(self, seconds: float) -> None:
        if not self._over:
            self._timer = self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        for completion in self.completions:
            completion.expired = not completion.ended
        self.cancel()

    def _publish(self, event: Delta | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the reader
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def _least(seconds: Iterable[float | None]) -> float | None:
    return min((one for one in seconds if one is not None), default=None)
