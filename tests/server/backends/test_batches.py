"""Batches without an engine: who goes together, and what comes out of it. `test_turns.py`: who waits."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from support.batch_engine import BatchEngine, Named, clocked, greedy
from support.collector import Collector

from pangu_server.backends.ctranslate2.batch import Batch
from pangu_server.backends.ctranslate2.batches import BatchSchedule
from pangu_server.backends.sampling import token_logprobs
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchEngine]:
    with clocked(monkeypatch) as engine:
        yield engine


def tickets(*requests: tuple[int, SamplingOptions]) -> list[Ticket]:
    """One of `length` tokens each; its first token is its number."""
    return [
        Ticket([number] + [1] * (length - 1), options, Collector())
        for number, (length, options) in enumerate(requests)
    ]


def numbers(chosen: Sequence[Ticket]) -> list[int]:
    return [ticket.tokens[0] for ticket in chosen]


def test_only_near_lengths_go_together_and_the_head_always_goes(engine: BatchEngine) -> None:
    waiting = tickets(
        (64, greedy(32)), (512, greedy(32)), (70, greedy(32)), (80, greedy(32)), (20, greedy(1))
    )
    assert numbers(engine.choose(waiting)) == [0, 2, 3]
    assert numbers(engine.choose(waiting[1:])) == [1]


def test_a_batch_is_never_predicted_to_be_slower_than_its_rows_apart() -> None:
    random = np.random.default_rng(0)
    schedule = BatchEngine()
    for _ in range(50):
        waiting = tickets(
            *((int(random.integers(1, 600)), greedy(int(random.integers(1, 200)))) for _ in range(20))
        )
        chosen = schedule.choose(waiting)
        apart = sum(schedule.costs.batch([ticket]) for ticket in chosen)
        assert len(chosen) <= 16
        assert schedule.costs.batch(chosen) <= apart + 1e-9
    schedule.close()


def test_what_the_engine_draws_differently_does_not_go_together(engine: BatchEngine) -> None:
    sampled = SamplingOptions(max_tokens=8, temperature=0.5)
    seeded = SamplingOptions(max_tokens=8, temperature=0.5, seed=1)
    biased = SamplingOptions(max_tokens=8, temperature=0, logit_bias=((3, 1.0),))
    hotter = SamplingOptions(max_tokens=8, temperature=0.9)
    waiting = tickets(*((64, options) for options in (greedy(), sampled, seeded, biased, sampled, hotter)))
    assert numbers(engine.choose(waiting)) == [0, 2, 3], "drafts are greedy"
    assert numbers(engine.choose(waiting[1:])) == [1, 4]


SAMPLED = SamplingOptions(max_tokens=12, temperature=0.7, seed=3)
MIXED: list[tuple[int, SamplingOptions]] = [
    (5, greedy(40)),
    (9, SAMPLED),
    (60, greedy(20)),
    (6, SamplingOptions(max_tokens=30, temperature=0, repetition_penalty=1.5, logprobs=2)),
    (58, SamplingOptions(max_tokens=9, temperature=0, end_token_ids=tuple(range(0, 50, 7)), min_tokens=3)),
    (5, SamplingOptions(max_tokens=5, temperature=0, prompt_logprobs=1)),
    (5, SamplingOptions(max_tokens=0, prompt_logprobs=0)),
    (40, SamplingOptions(max_tokens=3, temperature=0, prompt_logprobs=2, logprobs=0)),
    (7, SamplingOptions(max_tokens=0)),
]


@pytest.mark.parametrize("piece", [1 << 30, 5, 1])
@pytest.mark.parametrize("others", ["at every step", "as it comes", "never"])
def test_company_and_interruptions_change_no_token(
    engine: BatchEngine, others: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.piece = piece
    if others != "as it comes":
        due = others == "at every step"
        monkeypatch.setattr(
            BatchSchedule, "_due", lambda self, *_: due and bool(self.waiting or self._paused)
        )
    prompts = [ticket.tokens for ticket in tickets(*MIXED)]
    collectors = [Collector() for _ in MIXED]
    for prompt, (_, options), collector in zip(prompts, MIXED, collectors, strict=True):
        engine.submit(prompt, options, collector)
    engine.go.set()
    for prompt, (_, options), collector in zip(prompts, MIXED, collectors, strict=True):
        assert collector.ended.wait(60)
        assert collector.error is None
        assert collector.tokens == (engine.alone(prompt, options) if options.max_tokens else [])
        if (top := options.prompt_logprobs) is not None:
            scored = (
                token_logprobs(engine.logits(prompt[:end]), prompt[end], top) for end in range(1, len(prompt))
            )
            assert collector.prompt_logprobs == [None, *scored]
    assert not engine.waiting
    assert not engine.running
    assert (engine.beside > 5) == (others == "at every step")
    assert (engine.beside == 0) == (others == "never")


def test_a_row_that_left_its_draft_goes_on_before_newcomers(engine: BatchEngine) -> None:
    hot = SamplingOptions(max_tokens=2, temperature=5.0, seed=1)  # hardly ever the best token
    engine.submit([1] * 5, hot, first := Named("first", engine))
    engine.submit([2] * 400, greedy(1), second := Named("second", engine))
    engine.go.set()
    assert first.ended.wait(30)
    assert second.ended.wait(30)
    assert engine.batches == [[1], [1], [2]]
    assert engine.events == ["first starts", "first ends", "second starts", "second ends"]


def test_a_long_prompt_is_not_left_to_forced_steps_alone(engine: BatchEngine) -> None:
    engine.costs.token_seconds = engine.costs.growth_seconds = 1e-6
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


def test_cancelled_in_the_queue_and_in_flight(engine: BatchEngine) -> None:
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
