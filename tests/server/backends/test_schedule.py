"""Schedules, through the serial one: order, cancellation in both stages, an end for everything submitted."""

import threading
from collections.abc import Sequence

import pytest
from support.scripted import SerialSchedule

from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs

OPTIONS = SamplingOptions(max_tokens=3)


class Recorder:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[str | int | Exception | None] = []
        self.ended = threading.Event()

    def on_start(self) -> None:
        self.calls.append("start")

    def on_prompt(self, logprobs: Sequence[TokenLogprobs | None]) -> None:
        raise AssertionError("not asked for")

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        self.calls.append(token_id)
        return False

    def on_end(self, error: Exception | None) -> None:
        assert not self.ended.is_set(), "ended twice"
        self.calls.append("end" if error is None else error)
        self.ended.set()


class Steps:
    """A generation of three tokens that waits for `go` before each."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.started: list[int] = []

    def __call__(self, ticket: Ticket) -> None:
        first = ticket.tokens[0]
        self.started.append(first)
        for step in range(ticket.options.max_tokens):
            assert self.go.acquire(timeout=30)
            if ticket.take(10 * first + step):
                return


def test_prompts_run_in_order_one_at_a_time() -> None:
    steps = Steps()
    scheduler = SerialSchedule(steps)
    listeners = [Recorder(), Recorder()]
    for number, listener in enumerate(listeners, start=1):
        scheduler.submit([number], OPTIONS, listener)
    steps.go.release(3)
    assert listeners[0].ended.wait(30)
    assert listeners[0].calls == ["start", 10, 11, 12, "end"]
    assert "end" not in listeners[1].calls
    steps.go.release(3)
    assert listeners[1].ended.wait(30)
    assert steps.started == [1, 2]
    scheduler.close()


def test_a_queued_prompt_is_dropped_at_once_and_never_starts() -> None:
    steps = Steps()
    scheduler = SerialSchedule(steps)
    first, second = Recorder(), Recorder()
    scheduler.submit([1], OPTIONS, first)
    ticket = scheduler.submit([2], OPTIONS, second)
    scheduler.cancel(ticket)
    assert second.calls == ["end"]
    scheduler.cancel(ticket)
    steps.go.release(3)
    assert first.ended.wait(30)
    scheduler.close()
    assert steps.started == [1]


def test_a_running_prompt_stops_at_its_next_token() -> None:
    steps = Steps()
    scheduler = SerialSchedule(steps)
    listener = Recorder()
    ticket = scheduler.submit([1], OPTIONS, listener)
    steps.go.release()
    while 10 not in listener.calls:
        pass
    scheduler.cancel(ticket)
    steps.go.release()
    assert listener.ended.wait(30)
    assert listener.calls == ["start", 10, "end"]
    scheduler.close()


def test_a_failure_is_told_and_the_next_prompt_runs(caplog: pytest.LogCaptureFixture) -> None:
    def generate(ticket: Ticket) -> None:
        if ticket.tokens[0] == 1:
            raise ValueError("fault")
        ticket.take(20)

    scheduler = SerialSchedule(generate)
    first, second = Recorder(), Recorder()
    scheduler.submit([1], OPTIONS, first)
    scheduler.submit([2], OPTIONS, second)
    assert second.ended.wait(30)
    assert second.calls == ["start", 20, "end"]
    assert isinstance(first.calls[-1], ValueError)
    assert "generation failed" in caplog.text
    scheduler.close()


def test_closing_ends_everything_submitted() -> None:
    steps = Steps()
    scheduler = SerialSchedule(steps)
    listeners = [Recorder() for _ in range(3)]
    for number, listener in enumerate(listeners, start=1):
        scheduler.submit([number], OPTIONS, listener)
    while not steps.started:
        pass
    steps.go.release()  # the running one needs a step to notice
    scheduler.close()
    assert all(listener.ended.is_set() for listener in listeners)
    with pytest.raises(RuntimeError):
        scheduler.submit([9], OPTIONS, Recorder())
