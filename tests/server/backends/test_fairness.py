"""Who waits for whom on the torch engine, counted in steps."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collector import Collector
from support.rig import Rig, finished, prompt_of, tiny_model

from pangu_server.backends.torch import prefill
from pangu_server.backends.torch.rows import Part

BUDGET = 32


class Counted(Collector):
    """Notes the number of the step that had its first token."""

    def __init__(self, steps: list[list[int]]) -> None:
        super().__init__()
        self._steps, self.first = steps, 0

    def on_token(self, token_id: int, logprobs: Any) -> bool:
        self.first = self.first or len(self._steps)
        return super().on_token(token_id, logprobs)


class Steps:
    """A rig whose first step waits until all requests of a test are there; `counts` are the tokens of each part."""

    def __init__(self, folder: Path) -> None:
        self.rig, self.counts, self.go = Rig(folder), list[list[int]](), threading.Event()
        forward = self.rig.runner.forward

        def counted(parts: Sequence[Part]) -> torch.Tensor:
            assert self.go.wait(60)
            self.counts.append([part.count for part in parts])
            return forward(parts)

        self.rig.runner.forward = counted  # type: ignore[method-assign]

    def submit(self, prompt: list[int], max_tokens: int = 2) -> Counted:
        listener = Counted(self.counts)
        self.rig.submit(prompt, listener, max_tokens=max_tokens)
        return listener


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    monkeypatch.setitem(prefill.PREFILL_TOKENS, "cpu", BUDGET)
    steps = Steps(folder)
    yield steps
    steps.go.set()
    steps.rig.schedule.close()


def check(steps: Steps, prompts: dict[Counted, list[int]]) -> None:
    steps.go.set()
    for listener, prompt in prompts.items():
        assert finished(listener).tokens == steps.rig.expected(prompt, 2)
    assert max(sum(count for count in counts if count > 1) for counts in steps.counts) <= BUDGET


def test_a_short_newcomer_does_not_wait_for_a_long_prompt(steps: Steps) -> None:
    long, short = prompt_of(480), prompt_of(14, seed=1)
    prompts = {steps.submit(long): long, steps.submit(short): short}
    check(steps, prompts)
    behind = list(prompts)[1]
    assert behind.first <= 2
    assert next(iter(prompts)).first <= 480 // BUDGET + 2, (
        "nor does the long one lose more than the short one needs"
    )


def test_short_ones_without_end_leave_a_long_prompt_half_of_each_step(steps: Steps) -> None:
    long = prompt_of(320)
    others = [prompt_of(100 + n, seed=n) for n in range(1, 10)]
    prompts = {steps.submit(prompt): prompt for prompt in [long, *others]}
    check(steps, prompts)
    assert next(iter(prompts)).first <= 2 * 320 // BUDGET + 1


def test_prompts_of_one_length_are_computed_in_their_order(steps: Steps) -> None:
    prompts = {steps.submit(prompt): prompt for prompt in (prompt_of(96, seed=n) for n in range(3))}
    check(steps, prompts)
    assert [listener.first for listener in prompts] == [96 * (n + 1) // BUDGET for n in range(3)]


def test_who_shares_a_beginning_waits_for_that_only_and_nobody_waits_for_him(steps: Steps) -> None:
    long = prompt_of(480)
    alike, other = [*long[:40], *prompt_of(5, seed=1)], prompt_of(10, seed=2)
    prompts = {steps.submit(prompt): prompt for prompt in (long, alike, other)}
    check(steps, prompts)
    _, second, third = prompts
    assert second.first <= 5
    assert third.first <= 2
    assert sum(map(sum, steps.counts)) <= 480 + 5 + 16 + 10 + 3, "what is alike was computed once"
