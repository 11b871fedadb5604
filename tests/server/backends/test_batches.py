"""Batches without an engine: who goes together, who has to wait for how long, and what comes out of it."""

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from support.collector import Collector

from pangu_server.backends.ctranslate2 import batches
from pangu_server.backends.ctranslate2.batches import Batch, BatchSchedule, CostModel, Interrupted
from pangu_server.backends.sampling import Logits
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions

VOCABULARY = 50
STEP_SECONDS = 0.1


def greedy(max_tokens: int = 8) -> SamplingOptions:
    return SamplingOptions(max_tokens=max_tokens, temperature=0)


class Engine(BatchSchedule):
    """Behaves like CTranslate2 with a clock of its own. The next token is a function of those before it."""

    def __init__(self, max_batch: int = 16) -> None:
        super().__init__(max_batch)
        self.seconds = 0.0
        self.batches: list[list[int]] = []  # first token of each row
        self.forced_steps = 0
        self.entered, self.go = threading.Event(), threading.Event()
        self.events: list[str] = []
        self.start()

    def logits(self, tokens: Sequence[int]) -> Logits:
        return np.random.default_rng(list(tokens)).normal(size=VOCABULARY, scale=3).astype(np.float32)

    def run(self, batch: Batch) -> None:
        self.entered.set()
        assert self.go.wait(30)
        rows = [list(ticket.tokens) for ticket in batch.tickets]
        self.batches.append([row[0] for row in rows])
        shortest = len(rows[-1])
        forced = [len(row) - shortest for row in rows]
        alive, step = list(range(len(rows))), 0
        try:
            while alive:
                self.seconds += STEP_SECONDS
                logits = np.stack([self.logits(rows[row]) for row in alive])
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

    def forward(self, token_ids: Sequence[int]) -> Logits:
        return np.stack([self.logits(token_ids[: end + 1]) for end in range(len(token_ids))])

    def alone(self, prompt: Sequence[int], options: SamplingOptions) -> list[int]:
        """What must come out, by the definition of sampling."""
        ticket = Ticket(prompt, options, Collector())
        while not ticket.take(ticket.choose(self.logits(ticket.tokens)), self.logits(ticket.tokens)):
            pass
        return ticket.tokens[len(prompt) :]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine: Engine | None = None
    monkeypatch.setattr(time, "perf_counter", lambda: engine.seconds if engine else 0.0)
    engine = Engine()
    yield engine
    engine.go.set()
    engine.close()


class Named(Collector):
    """Notes in the engine's events when it starts and ends."""

    def __init__(self, name: str, events: list[str]) -> None:
        super().__init__()
        self._name, self._events = name, events

    def on_start(self) -> None:
        self._events.append(f"{self._name} starts")

    def on_end(self, error: Exception | None) -> None:
        self._events.append(f"{self._name} ends")
        super().on_end(error)


def tickets(*requests: tuple[int, SamplingOptions]) -> list[Ticket]:
    """One of `length` tokens each; its first token is its number."""
    return [
        Ticket([number] + [1] * (length - 1), options, Collector())
        for number, (length, options) in enumerate(requests)
    ]


def numbers(chosen: Sequence[Ticket]) -> list[int]:
    return [ticket.tokens[0] for ticket in chosen]


def test_only_near_lengths_go_together_and_the_head_always_goes(engine: Engine) -> None:
    waiting = tickets(
        (64, greedy(32)), (512, greedy(32)), (70, greedy(32)), (80, greedy(32)), (20, greedy(1))
    )
    assert numbers(engine.choose(waiting)) == [0, 2, 3]
    assert numbers(engine.choose(waiting[1:])) == [1]


def test_a_batch_is_never_predicted_to_be_slower_than_its_rows_apart() -> None:
    random = np.random.default_rng(0)
    schedule = Engine()
    for _ in range(50):
        waiting = tickets(
            *((int(random.integers(1, 600)), greedy(int(random.integers(1, 200)))) for _ in range(20))
        )
        chosen = schedule.choose(waiting)
        apart = sum(schedule.costs.batch([ticket]) for ticket in chosen)
        assert len(chosen) <= 16
        assert schedule.costs.batch(chosen) <= apart + 1e-9
    schedule.close()


def test_what_the_engine_draws_differently_does_not_go_together(engine: Engine) -> None:
    sampled = SamplingOptions(max_tokens=8, temperature=0.5)
    seeded = SamplingOptions(max_tokens=8, temperature=0.5, seed=1)
    biased = SamplingOptions(max_tokens=8, temperature=0, logit_bias=((3, 1.0),))
    hotter = SamplingOptions(max_tokens=8, temperature=0.9)
    waiting = tickets(*((64, options) for options in (greedy(), sampled, seeded, biased, sampled, hotter)))
    assert numbers(engine.choose(waiting)) == [0, 2, 3], "drafts are greedy"
    assert numbers(engine.choose(waiting[1:])) == [1, 4]


def test_the_cost_model_learns_the_machine() -> None:
    costs = CostModel()
    near = tickets((60, greedy(16)), (64, greedy(16)))
    assert costs.batch(near) < sum(costs.batch([ticket]) for ticket in near)
    for _ in range(300):  # a machine on which a second row costs as much as the first
        costs.learn_step(1, 1.0)
        costs.learn_step(2, 2.0)
    costs.learn_prefill(1000, 2, 2.0 + 100.0)
    assert costs.step(1) == pytest.approx(1.0)
    assert costs.step(2) == pytest.approx(2.0, rel=0.01)
    assert costs.batch(near) >= sum(costs.batch([ticket]) for ticket in near) - 0.2


SAMPLED = SamplingOptions(max_tokens=12, temperature=0.7, seed=3)
MIXED: list[tuple[int, SamplingOptions]] = [
    (5, greedy(40)),
    (9, SAMPLED),
    (60, greedy(20)),
    (6, SamplingOptions(max_tokens=30, temperature=0, repetition_penalty=1.5, logprobs=2)),
    (58, SamplingOptions(max_tokens=9, temperature=0, end_token_ids=tuple(range(0, 50, 7)), min_tokens=3)),
    (5, SamplingOptions(max_tokens=5, temperature=0, prompt_logprobs=1)),
    (5, SamplingOptions(max_tokens=0, prompt_logprobs=0)),
    (7, SamplingOptions(max_tokens=0)),
]


@pytest.mark.parametrize("quantum", [0.0, 0.25, 1000.0])
def test_company_and_interruptions_change_no_token(
    engine: Engine, quantum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "QUANTUM_SECONDS", quantum)
    monkeypatch.setattr(batches, "QUANTUM_RESUMES", 8 if quantum else 0)
    prompts = [ticket.tokens for ticket in tickets(*MIXED)]
    collectors = [Collector() for _ in MIXED]
    for prompt, (_, options), collector in zip(prompts, MIXED, collectors, strict=True):
        engine.submit(prompt, options, collector)
    engine.go.set()
    for prompt, (_, options), collector in zip(prompts, MIXED, collectors, strict=True):
        assert collector.ended.wait(60)
        assert collector.error is None
        assert collector.tokens == (engine.alone(prompt, options) if options.max_tokens else [])
        if options.prompt_logprobs is not None:
            assert len(collector.prompt_logprobs) == len(prompt)
    assert not engine.waiting
    assert not engine.running
    assert (engine.events.count("interrupted") > 5) == (quantum == 0)


def test_a_short_prompt_gets_its_turn_beside_a_long_generation(engine: Engine) -> None:
    names = {"long": ([1] * 30, greedy(500)), "short": ([2] * 3, greedy(4))}
    collectors = {name: Named(name, engine.events) for name in names}
    for name, (prompt, options) in names.items():
        engine.submit(prompt, options, collectors[name])
    engine.go.set()
    for name, (prompt, options) in names.items():
        assert collectors[name].ended.wait(60)
        assert collectors[name].tokens == engine.alone(prompt, options)
    expected = ["long starts", "interrupted", "short starts", "short ends", "long ends"]
    assert engine.events == expected


def test_a_row_that_left_its_draft_goes_on_before_newcomers(engine: Engine) -> None:
    hot = SamplingOptions(max_tokens=2, temperature=5.0, seed=1)  # hardly ever the best token
    engine.submit([1] * 5, hot, first := Named("first", engine.events))
    engine.submit([2] * 400, greedy(1), second := Named("second", engine.events))
    engine.go.set()
    assert first.ended.wait(30)
    assert second.ended.wait(30)
    assert engine.batches == [[1], [1], [2]]
    assert engine.events == ["first starts", "first ends", "second starts", "second ends"]


def test_a_long_prompt_is_not_left_to_forced_steps_alone(engine: Engine) -> None:
    engine.costs.prefill_seconds = 1e-6
    short, long = tickets((2, greedy(2)), (80, greedy(2)))
    for ticket in (short, long):
        ticket.started = True
    engine.running += [short, long]
    engine.go.set()
    engine.run(batch := Batch([short, long], engine.costs))
    engine.running.clear()
    assert batch.ended == [short]
    assert engine.events == ["interrupted"]
    assert engine.forced_steps == 0


def test_cancelled_in_the_queue_and_in_flight(engine: Engine) -> None:
    collectors = [Collector() for _ in range(3)]
    stopped = threading.Event()

    class Canceller(Collector):
        def on_token(self, token_id: int, logprobs: object) -> bool:
            self.tokens.append(token_id)
            if len(self.tokens) == 3:
                engine.cancel(running)
                stopped.set()
            return False

    canceller = Canceller()
    running = engine.submit([1] * 5, greedy(100), canceller)
    assert engine.entered.wait(30)
    others = [engine.submit([2] * 5, greedy(4), collector) for collector in collectors]
    engine.cancel(others[0])
    assert collectors[0].ended.wait(30)
    engine.go.set()
    for collector in (*collectors, canceller):
        assert collector.ended.wait(30)
    assert len(canceller.tokens) == 3
    assert [len(collector.tokens) for collector in collectors] == [0, 4, 4]
