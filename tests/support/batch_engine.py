"""An engine under `BatchSchedule` that behaves like CTranslate2, with a clock of its own."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pangu_server.backends.ctranslate2.batch import Batch, Interrupted
from pangu_server.backends.ctranslate2.batches import BatchSchedule
from pangu_server.backends.sampling import Logits
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs
from support.collector import Collector

VOCABULARY = 50
STEP_SECONDS = 0.1


def greedy(max_tokens: int = 8) -> SamplingOptions:
    return SamplingOptions(max_tokens=max_tokens, temperature=0)


class BatchEngine(BatchSchedule):
    """The next token is a function of those before it. Runs nothing before `go` is set."""

    def __init__(self, max_batch: int = 16) -> None:
        super().__init__(max_batch)
        self.seconds = self.prefill_seconds = 0.0  # now; what prefilling a token takes
        self.batches: list[list[int]] = []  # first token of each row
        self.forced_steps = self.beside = 0  # batches that ran while another one paused
        self.workers = 2
        self.entered, self.go = threading.Event(), threading.Event()
        self.events: list[str] = []
        self.start()

    def logits(self, tokens: Sequence[int]) -> Logits:
        random = np.random.default_rng(abs(hash(tuple(tokens))))
        return random.normal(size=VOCABULARY, scale=3).astype(np.float32)

    def run(self, batch: Batch) -> None:
        self.entered.set()
        assert self.go.wait(30)
        rows = [list(ticket.tokens) for ticket in batch.tickets]
        self.batches.append([row[0] for row in rows])
        self.workers -= 1
        assert self.workers >= 0
        self.beside += self.workers == 0
        shortest = len(rows[-1])
        forced = [len(row) - shortest for row in rows]
        alive, step = list(range(len(rows))), 0
        self.seconds += self.prefill_seconds * shortest * len(rows)
        try:
            while alive:
                self.seconds += STEP_SECONDS
                logits = np.stack([self.logits(rows[row][: shortest + step]) for row in alive])
                before = list(alive)
                generating = [row for row in before if forced[row] <= step]
                self.forced_steps += not generating
                for row in generating:
                    token_id = int(logits[before.index(row)].argmax())
                    rows[row].append(token_id)
                    if batch.take(row, step, token_id, lambda: logits):  # noqa: B023
                        alive.remove(row)
                step += 1
        except Interrupted:
            self.events.append("interrupted")
        finally:
            self.workers += 1

    def forward(self, token_ids: Sequence[int]) -> Logits:
        return np.stack([self.logits(token_ids[: end + 1]) for end in range(len(token_ids))])

    def alone(self, prompt: Sequence[int], options: SamplingOptions) -> list[int]:
        """What must come out, by the definition of sampling."""
        ticket = Ticket(prompt, options, Collector())
        while not ticket.take(ticket.choose(self.logits(ticket.tokens)), self.logits(ticket.tokens)):
            pass
        return ticket.tokens[len(prompt) :]


class Named(Collector):
    """Notes in the engine's events when it starts and ends, and the engine's seconds of each token."""

    def __init__(self, name: str, engine: BatchEngine) -> None:
        super().__init__()
        self._name, self._engine = name, engine
        self.seconds: list[float] = []

    def on_start(self) -> None:
        self._engine.events.append(f"{self._name} starts")

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        self.seconds.append(self._engine.seconds)
        return super().on_token(token_id, logprobs)

    def on_end(self, error: Exception | None) -> None:
        self._engine.events.append(f"{self._name} ends")
        super().on_end(error)


@contextlib.contextmanager
def clocked(monkeypatch: pytest.MonkeyPatch, max_batch: int = 16) -> Iterator[BatchEngine]:
    """An engine whose clock is the schedule's."""
    engine: BatchEngine | None = None
    monkeypatch.setattr(time, "perf_counter", lambda: engine.seconds if engine else 0.0)
    engine = BatchEngine(max_batch)
    yield engine
    engine.go.set()
    engine.close()
