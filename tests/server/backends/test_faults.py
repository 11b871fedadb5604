"""What fails in one request, or in one step of several, reaches nobody else and leaves nothing behind."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collector import Collector
from support.rig import Rig, finished, prompt_of, tiny_model
from support.served import wait_for

from pangu_server.backends.torch.cuda_cache import CudaCache
from pangu_server.backends.torch.device_choosing import DeviceChoosing

# Of Triton 3.6 with NumPy 2.2.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


class Watched(Collector):
    """Holds the engine's thread at its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hold = threading.Event(), threading.Event()

    def on_token(self, token_id: int, logprobs: Any) -> bool:
        stop = super().on_token(token_id, logprobs)
        self.first.set()
        assert self.hold.wait(60)
        return stop


class Failing(Collector):
    """Fails in one of its methods."""

    def __init__(self, method: str) -> None:
        super().__init__()

        def fail(*_: Any) -> None:
            self.ended.set()
            raise ValueError("fault")

        setattr(self, method, fail)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def rig(folder: Path) -> Iterator[Rig]:
    rig = Rig(folder)
    yield rig
    rig.schedule.close()


def running(rig: Rig) -> Watched:
    """A request that runs and is held at its first token."""
    listener = Watched()
    rig.submit(prompt_of(50), listener, max_tokens=20)
    assert listener.first.wait(60)
    return listener


def undisturbed(rig: Rig, listener: Watched) -> None:
    assert finished(listener).tokens == rig.expected(prompt_of(50), 20)
    assert rig.run(prompt_of(30), max_tokens=8).tokens == rig.expected(prompt_of(30), 8)
    wait_for(lambda: rig.schedule.cache_use().used_fraction == 0)
    assert not rig.schedule._rows.running


def failing_once(function: Callable[..., Any]) -> Callable[..., Any]:
    left = [1]

    def failing(*arguments: Any, **named: Any) -> Any:
        if left[0]:
            left[0] = 0
            raise torch.OutOfMemoryError("fault")
        return function(*arguments, **named)

    return failing


@pytest.mark.parametrize("stage", ["choose", "accept", "logprobs"])
def test_a_step_that_fails_after_the_forward_ends_its_newest_request_only(
    rig: Rig, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Watched()
    rig.submit(prompt_of(50), first, max_tokens=20, frequency_penalty=0.5)
    assert first.first.wait(60)
    monkeypatch.setattr(rig.schedule._choosing, stage, failing_once(getattr(rig.schedule._choosing, stage)))
    other = rig.submit(prompt_of(20, seed=1), max_tokens=5, logprobs=1)
    first.hold.set()
    assert other.ended.wait(60)
    assert isinstance(other.error, torch.OutOfMemoryError)
    tokens = finished(first).tokens
    assert tokens == rig.run(prompt_of(50), max_tokens=20, frequency_penalty=0.5).tokens
    wait_for(lambda: rig.schedule.cache_use().used_fraction == 0)


@pytest.mark.parametrize("method", ["on_start", "on_prompt", "on_token", "on_end"])
def test_a_listener_that_fails_is_alone_in_it(rig: Rig, method: str) -> None:
    first = running(rig)
    failing = Failing(method)
    rig.submit(prompt_of(20, seed=1), failing, max_tokens=3, prompt_logprobs=0)
    first.hold.set()
    assert failing.ended.wait(60)
    undisturbed(rig, first)


def test_a_step_whose_tokens_cannot_be_read_leaves_nothing_behind(rig: Rig) -> None:
    first = running(rig)
    rig.schedule._settle = failing_once(rig.schedule._settle)  # type: ignore[method-assign]
    first.hold.set()
    assert first.ended.wait(60)
    assert isinstance(first.error, torch.OutOfMemoryError)
    assert rig.run(prompt_of(30), max_tokens=8).tokens == rig.expected(prompt_of(30), 8)
    wait_for(lambda: rig.schedule.cache_use().used_fraction == 0)
    assert not rig.schedule._rows.running


def test_a_step_that_nobody_waited_for_teaches_no_cost(folder: Path) -> None:
    """The step behind the last token of a request is read when the next request comes, be it an hour later."""
    rig = Rig(folder, cache=CudaCache, choosing=DeviceChoosing)
    rig.schedule._drafts = False  # so steps run ahead
    learned: list[float] = []
    rig.costs.learn = lambda tokens, seconds: learned.append(seconds)  # type: ignore[method-assign]
    prompt = prompt_of(20)
    end = rig.expected(prompt, 4)[2]
    rig.run(prompt, max_tokens=8, end_token_ids=(end,))
    wait_for(lambda: rig.schedule._flying is not None)  # one more was launched
    step = rig.schedule._flying
    assert step
    object.__setattr__(step, "started", step.started - 3600)
    rig.run(prompt, max_tokens=2)
    assert max(learned, default=0) < 3600
    rig.schedule.close()
