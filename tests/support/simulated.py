"""Both schedules without threads: a clock of their own, a scripted model, and faults when told.

Whatever happens meanwhile (a client comes or goes, a deadline, the end of the server) is an event of the clock. Events
run where a thread of the server could be interrupted: while a step computes, and before a lock is taken. So a history
is a function of its seed.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch

from pangu_server.backends.sampling import Logits
from pangu_server.backends.schedule import Schedule
from pangu_server.backends.seam import BackendInfo, CacheUse, Counts, EngineName
from pangu_server.backends.torch.cache import PAGE_TOKENS, PagedCache
from pangu_server.backends.torch.choosing import Choosing
from pangu_server.backends.torch.continuous import ContinuousSchedule
from pangu_server.backends.torch.device_choosing import DeviceChoosing
from pangu_server.backends.torch.host_choosing import HostChoosing
from pangu_server.backends.torch.rows import Part
from pangu_server.backends.torch.runner import UNREAD, Tokens
from support.batch_engine import BatchEngine
from support.scripted import END, VOCABULARY_SIZE, logits

CONTEXT = 96  # tokens
MAX_BATCH = 3
STEP_SECONDS = 0.1
ADAPTERS = (None, "one", "other")


def script(context: Sequence[int]) -> int:
    """The token after `context`: a letter, a line end, or the end. It often repeats itself, so that guesses pay."""
    last, before = context[-1], context[-2] if len(context) > 1 else 0
    if (len(context) + last) % 19 == 0:
        return END
    letter = (last * 3 + before) % 7
    return ord("abcdef\n"[letter])


class Fault(Exception):
    """What a step fails with."""


class Handle:
    """An event that can be called off."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """In the place of the event loop, and of the time."""

    def __init__(self, draw: random.Random, fault_rate: float = 0.0) -> None:
        self.now, self.faults = 0.0, 0
        self._draw, self._fault_rate = draw, fault_rate
        self._events: list[tuple[float, int, Handle, Callable[[], None]]] = []
        self._numbers = count()
        self._inside = False  # an event runs: the thread of events is one thread

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Handle:
        handle = Handle()
        heapq.heappush(self._events, (self.now + delay, next(self._numbers), handle, lambda: callback(*args)))
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., None], *args: Any) -> None:
        callback(*args)

    def advance(self, seconds: float) -> None:
        """Time passes, and what is due happens."""
        self.now += seconds
        if self._inside:
            return
        self._inside = True
        while self._events and self._events[0][0] <= self.now:
            _, _, handle, callback = heapq.heappop(self._events)
            if not handle.cancelled:
                callback()
        self._inside = False

    def skip(self) -> bool:
        """To the next event; False if there is none."""
        while self._events and self._events[0][2].cancelled:
            heapq.heappop(self._events)
        if not self._events:
            return False
        self.advance(max(0.0, self._events[0][0] - self.now))
        return True

    def interrupt(self) -> None:
        """A place where another thread may come in."""
        if not self._inside and self._draw.random() < 0.1:
            self.advance(self._draw.random() * STEP_SECONDS)

    def may_fail(self) -> None:
        """A place where the device may fail."""
        if self._draw.random() < self._fault_rate:
            self.faults += 1
            raise Fault("simulated")


class Lock:
    """A schedule's condition, before which other threads come in."""

    def __init__(self, condition: Any, clock: Clock) -> None:
        self._condition, self._clock = condition, clock

    def __enter__(self) -> None:
        self._clock.interrupt()
        self._condition.__enter__()

    def __exit__(self, *error: object) -> None:
        self._condition.__exit__(*error)

    def notify(self) -> None:
        self._condition.notify()


class TokenCache(PagedCache):
    """Keeps of a token its id and adapter: what a row reads must be what it, or another with the same text, wrote."""

    def __init__(self, pages: int, *, on_device: bool) -> None:
        super().__init__([], pages, MAX_BATCH, CONTEXT // PAGE_TOKENS + 1, torch.float32, torch.device("cpu"))
        self.on_device = on_device
        self.ids = np.full((pages, PAGE_TOKENS), UNREAD)
        self.adapters = np.zeros((pages, PAGE_TOKENS), np.int64)

    def _tensors(self) -> Sequence[Any]:
        return [self.ids, self.adapters]

    def text(self, slot: int, length: int, adapter: int) -> list[int]:
        """The first `length` tokens of the row in `slot`."""
        pages = self.tables[slot, : -(-length // PAGE_TOKENS)]
        assert (self.adapters[pages].ravel()[:length] == adapter).all(), "another adapter's keys and values"
        ids: list[int] = self.ids[pages].ravel()[:length].tolist()
        return ids


class ScriptedRunner:
    """In the place of `Runner`: the logits of `script` over what the cache holds."""

    device = torch.device("cpu")

    def __init__(self, cache: TokenCache, clock: Clock) -> None:
        self.cache, self._clock = cache, clock
        self._chosen: dict[int, int] = {}

    def remember(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        self._chosen.update(zip(slots, tokens.tolist(), strict=True))

    def forward(self, parts: Sequence[Part]) -> torch.Tensor:
        tokens = Tokens.of(parts, self.cache)
        self._clock.may_fail()
        self._clock.advance(STEP_SECONDS)
        unread = np.flatnonzero(tokens.ids == UNREAD)
        tokens.ids[unread] = [self._chosen[slot] for slot in tokens.slots[unread].tolist()]
        adapters = np.concatenate(
            [[ADAPTERS.index(part.row.ticket.options.adapter)] * part.count for part in parts]
        )
        self.cache.ids.reshape(-1)[tokens.places] = tokens.ids
        self.cache.adapters.reshape(-1)[tokens.places] = adapters
        kept = np.stack([tokens.slots, tokens.positions + 1, adapters])[:, tokens.kept].T
        rows = [logits(script(self.cache.text(*place))) for place in kept.tolist()]
        self._clock.may_fail()
        return torch.from_numpy(np.stack(rows or [logits(0)]))


class Simulated:
    """A backend whose turns are taken by the test."""

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        self.schedule = schedule
        self._paged = schedule if isinstance(schedule, ContinuousSchedule) else None
        engine: EngineName = "torch" if self._paged else "ctranslate2"
        self.info = BackendInfo(
            name=engine, engine=engine, device="cpu", compute_type="none", weight_bytes=0, threads=1
        )
        self.submit, self.cancel = schedule.submit, schedule.cancel
        schedule.changed = Lock(schedule.changed, clock)  # type: ignore[assignment]
        schedule._thread = self  # type: ignore[assignment]

    def join(self) -> None:
        """Nobody waits: the turns that are left are taken."""

    def cache_use(self) -> CacheUse:
        return CacheUse(held_bytes=0, used_fraction=self.held)

    @property
    def held(self) -> float:
        """The share of the cache that rows hold."""
        return self._paged.cache_use().used_fraction if self._paged else 0.0

    def counts(self) -> Counts:
        return self._paged.counts() if self._paged else Counts()

    def close(self) -> None:
        Schedule.close(self.schedule)


class Batches(BatchEngine):
    """CTranslate2's schedule on the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__(MAX_BATCH)
        self.go.set()

    def start(self) -> None:
        """No thread."""

    @property
    def seconds(self) -> float:
        return self._clock.now

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._clock.advance(value - self._clock.now)

    def logits(self, tokens: Sequence[int]) -> Logits:
        self._clock.may_fail()
        return logits(script(tokens))


def simulated(kind: str, clock: Clock, draw: random.Random) -> Simulated:
    """`torch`, `torch, ahead` (as on a GPU: a step starts before the last one's tokens are read), or `ctranslate2`."""
    if kind == "ctranslate2":
        return Simulated(Batches(clock), clock)
    ahead = kind == "torch, ahead"
    pages = draw.randint(CONTEXT // PAGE_TOKENS + 1, 3 * CONTEXT // PAGE_TOKENS)
    runner: Any = ScriptedRunner(TokenCache(pages, on_device=ahead), clock)
    choosing: Choosing = HostChoosing(VOCABULARY_SIZE)
    if ahead:
        choosing = DeviceChoosing(VOCABULARY_SIZE, MAX_BATCH, torch.device("cpu"))
    schedule = ContinuousSchedule(
        runner,
        choosing,
        max_batch=MAX_BATCH,
        on_batch=lambda rows: None,
        draft=draw.choice(["prompt", "off"]),
    )
    return Simulated(schedule, clock)
