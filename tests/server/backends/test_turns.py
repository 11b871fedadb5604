"""Who waits for whom, on the clock of a scripted engine."""

import threading
from collections.abc import Iterator

import pytest
from support.batch_engine import STEP_SECONDS, BatchEngine, Named, clocked, greedy
from support.collector import Collector

from pangu_server.backends.ctranslate2.batch import QUANTUM_COSTS, QUANTUM_SECONDS, quantum
from pangu_server.backends.ctranslate2.batches import BatchSchedule
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs

SLACK = 1.1  # predictions are learned


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchEngine]:
    with clocked(monkeypatch) as engine:
        for _ in range(100):
            engine.costs.learn_step(1, STEP_SECONDS)
        yield engine


class Arriving(Named):
    """Submits another request when it has had `after` tokens, and again whenever that one has ended, `times` in all."""

    def __init__(
        self, engine: BatchEngine, after: int, prompt: list[int], options: SamplingOptions, times: int = 1
    ) -> None:
        super().__init__("first", engine)
        self._after, self._times = after, times
        self._prompt, self._options = prompt, options
        self.others: list[Named] = []
        self.submitted: list[float] = []

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        arrived = len(self.tokens) + 1 >= self._after and len(self.others) < self._times
        if arrived and (not self.others or self.others[-1].ended.is_set()):
            self.others.append(Named("other", self._engine))
            self.submitted.append(self._engine.seconds)
            self._engine.submit(self._prompt, self._options, self.others[-1])
        return super().on_token(token_id, logprobs)


def run(engine: BatchEngine, prompt: list[int], options: SamplingOptions, first: Named) -> None:
    engine.submit(prompt, options, first)
    engine.go.set()
    assert first.ended.wait(60)
    assert first.error is None


@pytest.mark.parametrize("after", [1, 3, 40])
@pytest.mark.parametrize("prefill_seconds", [0.0, 0.1, 2.0])
def test_a_short_request_waits_for_twice_its_own_cost_and_the_long_one_loses_nothing(
    engine: BatchEngine, prefill_seconds: float, after: int
) -> None:
    engine.prefill_seconds = engine.costs.token_seconds = prefill_seconds
    engine.costs.growth_seconds = 0
    first = Arriving(engine, after, [2] * 3, greedy(4))
    run(engine, [1] * 60, greedy(100), first)
    [other] = first.others
    assert other.ended.wait(60)
    own_prefill = 3 * prefill_seconds
    waited = other.seconds[0] - first.submitted[0] - own_prefill - STEP_SECONDS
    assert waited <= SLACK * quantum(own_prefill + 4 * STEP_SECONDS) + STEP_SECONDS
    assert engine.batches == [[1], [2]], "nothing is prefilled again"
    assert engine.events == ["first starts", "other starts", "other ends", "first ends"]
    assert first.tokens == engine.alone([1] * 60, greedy(100))
    assert other.tokens == engine.alone([2] * 3, greedy(4))


def test_who_pauses_for_one_after_the_other_keeps_two_thirds_of_the_time(engine: BatchEngine) -> None:
    engine.prefill_seconds = engine.costs.token_seconds = 0.05
    engine.costs.growth_seconds = 0
    first = Arriving(engine, 1, [2] * 10, greedy(8), times=1000)
    run(engine, [1] * 40, greedy(300), first)
    took = first.seconds[-1] - first.seconds[0]
    assert len(first.others) > 5
    assert took <= SLACK * 300 * STEP_SECONDS * (QUANTUM_COSTS + 1) / QUANTUM_COSTS
    assert engine.costs.step(1) == pytest.approx(STEP_SECONDS), "a pause is not learned as a step"


def test_a_long_newcomer_starves_nobody_and_is_not_starved(engine: BatchEngine) -> None:
    engine.prefill_seconds = engine.costs.token_seconds = 0.2
    engine.costs.growth_seconds = 0
    long = greedy(400)
    first = Arriving(engine, 2, [2] * 50, long)
    run(engine, [1] * 50, greedy(300), first)
    [other] = first.others
    assert other.ended.wait(60)
    assert other.error is None
    gaps = [after - before for before, after in zip(first.seconds, first.seconds[1:], strict=False)]
    prefills = 0.2 * (50 + 400)  # at most: with all of its tokens
    assert max(gaps) <= SLACK * (QUANTUM_COSTS * prefills + 64 * STEP_SECONDS)
    # Both go on while the other one runs, and what is prefilled again takes no more than it leaves.
    assert len([at for at in other.seconds if at < first.seconds[-1]]) >= 50
    assert other.seconds[-1] <= SLACK * 2 * (2 * 0.2 * 50 + 700 * STEP_SECONDS)
    assert first.tokens == engine.alone([1] * 50, greedy(300))
    assert other.tokens == engine.alone([2] * 50, long)


def test_a_third_one_waits_for_what_was_predicted_for_the_second_not_for_its_end(engine: BatchEngine) -> None:
    engine.prefill_seconds = engine.costs.token_seconds = 0.1
    engine.costs.growth_seconds = 0
    second = Arriving(engine, 2, [3] * 4, greedy(4))
    submitted = threading.Event()

    class First(Named):
        def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
            if not submitted.is_set():
                submitted.set()
                engine.submit([2] * 20, greedy(1000), second)
            return super().on_token(token_id, logprobs)

    engine.submit([1] * 20, greedy(1000), first := First("first", engine))
    engine.go.set()
    assert first.ended.wait(60)
    assert second.ended.wait(60)
    [third] = second.others
    assert third.ended.wait(60)
    cost = 4 * 0.1 + 4 * STEP_SECONDS
    waited = third.seconds[0] - second.submitted[0]
    turn = max(20 * 0.1 + 64 * STEP_SECONDS, quantum(20 * 0.1 + cost))
    assert waited <= SLACK * (turn + quantum(cost) + cost)


def test_who_will_soon_have_ended_is_not_interrupted(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.costs.token_seconds, engine.costs.growth_seconds = 0.1, 0.0
    monkeypatch.setattr(BatchSchedule, "_due", lambda self, *_: bool(self.waiting or self._paused))
    first = Arriving(engine, 1, [2] * 50, greedy(8))  # 5 s to prefill, 0.8 s to go
    run(engine, [1] * 5, greedy(30), first)
    assert engine.batches == [[1], [2]]
    first = Arriving(engine, 1, [2] * 5, greedy(8))  # 0.5 s to prefill
    run(engine, [1] * 5, greedy(30), first)
    assert engine.batches[2:4] == [[1], [2]]
    assert engine.events.count("interrupted") > 0


@pytest.mark.parametrize(("max_batch", "batches"), [(3, [[1], [2, 2], [2]]), (1, [[1], [2], [2], [2]])])
def test_rows_that_pause_count(
    max_batch: int, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `max_batch` in all, or one more than those that pause."""
    with clocked(monkeypatch, max_batch) as engine:
        others = [Collector() for _ in range(3)]

        class First(Named):
            def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
                if not self.tokens:
                    for other in others:
                        engine.submit([2] * 5, greedy(3), other)
                return super().on_token(token_id, logprobs)

        run(engine, [1] * 5, greedy(100), First("first", engine))
        for other in others:
            assert other.ended.wait(60)
        assert engine.batches == batches


def test_idle_time_is_nobodys_turn(engine: BatchEngine) -> None:
    """After a quiet hour the next request has its quantum too."""
    run(engine, [1] * 5, greedy(1), Named("before", engine))
    engine.seconds += 3600
    first = Arriving(engine, 1, [2] * 3, greedy(40))
    run(engine, [1] * 5, greedy(100), first)
    assert first.others[0].seconds[0] - first.submitted[0] >= QUANTUM_SECONDS


def test_a_row_that_has_ended_is_told_so_before_its_batch_ends(engine: BatchEngine) -> None:
    short = Named("short", engine)
    seen: list[bool] = []

    class Long(Named):
        def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
            seen.append(short.ended.is_set())
            return super().on_token(token_id, logprobs)

    engine.submit([1] * 5, greedy(4), short)
    engine.submit([1] * 6, greedy(20), long := Long("long", engine))
    engine.go.set()
    assert long.ended.wait(60)
    assert engine.batches == [[1, 1]]
    assert seen == [False] * 3 + [True] * 17
    assert not engine.running


def test_what_fails_beside_fails_alone(engine: BatchEngine, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Collector):
        def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
            raise ValueError("fault")

    faulty = Faulty()

    class First(Named):
        def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
            if not self.tokens:
                engine.submit([2] * 3, greedy(4), faulty)
            return super().on_token(token_id, logprobs)

    run(engine, [1] * 5, greedy(30), first := First("first", engine))
    assert isinstance(faulty.error, ValueError)
    assert "generation failed" in caplog.text
    assert first.tokens == engine.alone([1] * 5, greedy(30))
    assert engine.workers == 2
    assert not engine.running


def test_cancelled_while_it_pauses(engine: BatchEngine) -> None:
    first: Named

    class Canceller(Collector):
        def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
            engine.cancel(ticket)
            return super().on_token(token_id, logprobs)

    first = Arriving(engine, 1, [2] * 3, greedy(2))
    canceller = Canceller()

    class Second(Named):
        def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
            if not self.tokens:
                engine.submit([2] * 3, greedy(3), canceller)
            return super().on_token(token_id, logprobs)

    ticket = engine.submit([1] * 5, greedy(100), first := Second("first", engine))
    engine.go.set()
    assert first.ended.wait(60)
    assert canceller.ended.wait(60)
    assert len(canceller.tokens) == 3
    assert len(first.tokens) < 100
