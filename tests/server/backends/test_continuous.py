"""Continuous batching: company, pieces, reused prefixes, guesses, a full cache and failures change no tokens."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collector import Collector
from support.rig import CONTEXT_TOKENS, MAX_BATCH, Rig, finished, prompt_of, repeating, tiny_model
from support.served import wait_for

from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions
from pangu_server.backends.torch.cache import PAGE_TOKENS
from pangu_server.backends.torch.rows import Part

Prompts = list[tuple[list[int], int]]  # token ids, new tokens


class Watched(Collector):
    """Lets a test wait for the first token, and hold the backend's thread there."""

    def __init__(self, hold: threading.Event | None = None) -> None:
        super().__init__()
        self.first = threading.Event()
        self.hold = hold

    def on_token(self, token_id: int, logprobs: Any) -> bool:
        stop = super().on_token(token_id, logprobs)
        self.first.set()
        if self.hold:
            assert self.hold.wait(60)
        return stop


@pytest.fixture(scope="module", params=["gpt_bigcode", "llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def rig(folder: Path) -> Iterator[Rig]:
    rig = Rig(folder)
    yield rig
    rig.schedule.close()


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 130, 257, 300])
def test_alone_the_tokens_are_those_of_generate(rig: Rig, length: int) -> None:
    prompt = prompt_of(length)
    expected = rig.expected(prompt, 12)
    assert rig.run(prompt, max_tokens=12).tokens == expected
    assert rig.run(prompt, max_tokens=12).tokens == expected, "with a reused prompt"
    end = expected[1]
    assert rig.run(prompt, max_tokens=3, end_token_ids=(end,)).tokens == expected[: expected.index(end) + 1]


@pytest.mark.parametrize("seed", range(6))
def test_in_company_the_tokens_are_those_of_generate(rig: Rig, seed: int) -> None:
    """Prompts of all lengths, many alike at the start, that join and leave at different times."""
    draw = random.Random(seed)
    heads = [prompt_of(draw.randrange(1, 300), seed=100 + number) for number in range(3)]
    prompts: Prompts = []
    for number in range(12):
        head = draw.choice(heads)
        rest = prompt_of(draw.choice([0, 1, 5, 140]), seed=1000 * seed + number)
        prompts.append((head[: draw.randrange(1, len(head) + 1)] + rest, draw.randrange(1, 24)))
    listeners = []
    for prompt, count in prompts:
        listeners.append(rig.submit(prompt, max_tokens=count))
        if draw.random() < 0.3:
            finished(draw.choice(listeners))
    for (prompt, count), listener in zip(prompts, listeners, strict=True):
        assert finished(listener).tokens == rig.expected(prompt, count)
    assert 1 < max(rig.batches) <= MAX_BATCH
    assert rig.schedule.cache_use().used_fraction == 0


@pytest.mark.real_model
def test_a_real_model_in_company_too(smollm2: Path) -> None:
    rig = Rig(smollm2)
    prompts = [(prompt_of(length, seed=length), 12) for length in (1, 40, 150, 300)]
    prompts.append(([*prompts[2][0][:140], 5, 6], 12))
    listeners = [rig.submit(prompt, max_tokens=count) for prompt, count in prompts]
    for (prompt, count), listener in zip(prompts, listeners, strict=True):
        assert finished(listener).tokens == rig.expected(prompt, count)
    rig.schedule.close()


def test_samples_of_one_prompt_compute_it_once(rig: Rig) -> None:
    computed: list[int] = []
    forward = rig.runner.forward

    def counted(parts: Sequence[Part]) -> torch.Tensor:
        computed.append(sum(part.count for part in parts))
        return forward(parts)

    rig.runner.forward = counted  # type: ignore[method-assign]
    prompt = prompt_of(200)
    listeners = [rig.submit(prompt, max_tokens=4) for _ in range(4)]
    tokens = [finished(listener).tokens for listener in listeners]
    assert sum(computed) <= len(prompt) + 4 * (4 + PAGE_TOKENS)
    computed.clear()
    finished(rig.submit([*prompt, *tokens[0], 7], max_tokens=1))
    assert sum(computed) <= 2, (
        "nor after they have ended, with one of the answers: to the token, not to the page"
    )
    assert all(sample == tokens[0] for sample in tokens)


def test_cached_tokens_are_counted(rig: Rig) -> None:
    prompt = prompt_of(100)
    first = rig.schedule.submit(prompt, SamplingOptions(max_tokens=1, temperature=0), Collector())
    wait_for(lambda: not rig.schedule.running and not rig.schedule.waiting)
    listener = Collector()
    second = rig.schedule.submit([*prompt, 5, 6], SamplingOptions(max_tokens=1, temperature=0), listener)
    finished(listener)
    assert (first.cached_tokens, second.cached_tokens) == (0, 100)
    counts = rig.schedule.counts()
    assert (counts.prefix_queries, counts.prefix_hits) == (202, 100)


@pytest.mark.parametrize("length", [1, 2, PAGE_TOKENS, 300])
def test_a_prompt_that_nothing_is_asked_of_is_in_the_cache(rig: Rig, length: int) -> None:
    prompt = prompt_of(length)
    company = rig.submit(prompt_of(9, seed=2), max_tokens=20)
    listener = Collector()
    warmed = rig.schedule.submit(prompt, SamplingOptions(max_tokens=0), listener)
    assert finished(listener).tokens == []
    assert warmed.read
    finished(company)
    listener = Collector()
    asked = rig.schedule.submit([*prompt, 5], SamplingOptions(max_tokens=3, temperature=0), listener)
    assert finished(listener).tokens == rig.expected([*prompt, 5], 3)
    assert asked.cached_tokens == length


def test_a_full_cache_puts_the_newest_back_and_fails_nobody(folder: Path) -> None:
    """Pages for one request of full context and a little more, for four that each want most of it."""
    rig = Rig(folder, pages=CONTEXT_TOKENS // PAGE_TOKENS + 2)
    prompts: Prompts = [(prompt_of(150 + 20 * number, seed=number), 90) for number in range(6)]
    listeners = [rig.submit(prompt, max_tokens=count) for prompt, count in prompts]
    for (prompt, count), listener in zip(prompts, listeners, strict=True):
        assert finished(listener).tokens == rig.expected(prompt, count)
    assert rig.schedule.counts().preemptions > 0
    assert rig.schedule.cache_use().used_fraction == 0
    rig.schedule.close()


def every_guess_pays(rig: Rig) -> None:
    rig.costs.step = lambda tokens: 1 + tokens / 100  # type: ignore[method-assign]


def test_right_guesses_save_steps_and_wrong_ones_change_nothing(rig: Rig) -> None:
    every_guess_pays(rig)
    prompt, answer = repeating(rig)
    assert rig.run(prompt, max_tokens=40).tokens == answer
    listener = Collector()
    options = SamplingOptions(max_tokens=40, temperature=0, prediction=tuple(answer))
    ticket = rig.schedule.submit(prompt, options, listener)
    assert finished(listener).tokens == answer
    assert ticket.drafted >= ticket.accepted >= 20
    lying = tuple(token % 299 + 1 for token in answer)
    for prediction in (lying, (answer[0], answer[1], answer[2], *lying), answer[:3] * 9):
        assert rig.run(prompt, max_tokens=40, prediction=tuple(prediction)).tokens == answer
    for end in (answer[7], answer[20]):
        stopped = rig.run(prompt, max_tokens=40, prediction=tuple(answer), end_token_ids=(end,)).tokens
        assert stopped == answer[: answer.index(end) + 1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.9, "top_p": 0.9, "seed": 3},
        {"temperature": 0.7, "seed": 4, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"temperature": 0, "presence_penalty": 0.5, "min_tokens": 5},
    ],
)
def test_guesses_do_not_change_what_a_seed_draws(rig: Rig, options: dict[str, Any]) -> None:
    every_guess_pays(rig)
    prompt = prompt_of(30)
    plain = rig.run(prompt, max_tokens=40, **options).tokens
    listener = Collector()
    guessed = SamplingOptions(max_tokens=40, prediction=tuple(plain), logprobs=1, **options)
    ticket = rig.schedule.submit(prompt, guessed, listener)
    assert finished(listener).tokens == plain
    assert ticket.accepted > 10
    logs = rig.logs(prompt + plain)[len(prompt) - 1 : -1]
    for token_id, given, row in zip(plain, listener.logprobs, logs, strict=True):
        assert given
        assert given.logprob == pytest.approx(float(row[token_id]), abs=1e-4)


def test_a_newcomer_waits_for_no_generation(rig: Rig) -> None:
    hold = threading.Event()
    running = Watched(hold)
    rig.submit(prompt_of(50), running, max_tokens=400)
    assert running.first.wait(60)
    newcomer = rig.submit(prompt_of(20, seed=5), max_tokens=4)
    hold.set()
    tokens = finished(newcomer).tokens
    assert len(running.tokens) < 400, "the other one still runs"
    assert tokens == rig.expected(prompt_of(20, seed=5), 4)
    finished(running)


def test_seeded_sampling_does_not_depend_on_company(rig: Rig) -> None:
    options = {"max_tokens": 20, "temperature": 0.9, "top_p": 0.9, "seed": 7}
    alone = rig.run(prompt_of(30), **options).tokens
    others = [rig.submit(prompt_of(length, seed=length), max_tokens=30) for length in (3, 170)]
    in_company = rig.run(prompt_of(30), **options).tokens
    for listener in others:
        finished(listener)
    assert alone == in_company
    assert rig.run(prompt_of(30), **{**options, "seed": 8}).tokens != alone


def test_logprobs_are_the_model_s(rig: Rig) -> None:
    prompt = prompt_of(60)
    company = rig.submit(prompt_of(20, seed=2), max_tokens=30)
    listener = rig.run(prompt, max_tokens=8, logprobs=3)
    finished(company)
    assert listener.tokens == rig.expected(prompt, 8)
    logs = rig.logs(prompt + listener.tokens)[len(prompt) - 1 : -1]
    for token_id, given, row in zip(listener.tokens, listener.logprobs, logs, strict=True):
        assert given
        assert given.logprob == pytest.approx(float(row[token_id]), abs=1e-5)
        assert [token_id for token_id, _ in given.top] == row.topk(3).indices.tolist()
        assert [logprob for _, logprob in given.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("length", [1, 2, 128, 129, 300])
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_prompt_logprobs_are_the_model_s(rig: Rig, length: int, max_tokens: int) -> None:
    prompt = prompt_of(length)
    rig.run(prompt, max_tokens=1)  # what it leaves in the cache must not shorten the answer
    company = rig.submit(prompt_of(20, seed=2), max_tokens=30)
    listener = rig.run(prompt, max_tokens=max_tokens, prompt_logprobs=2)
    finished(company)
    assert listener.tokens == (rig.expected(prompt, max_tokens) if max_tokens else [])
    assert listener.prompt_logprobs[0] is None
    assert len(listener.prompt_logprobs) == length
    for token_id, given, row in zip(prompt[1:], listener.prompt_logprobs[1:], rig.logs(prompt), strict=False):
        assert given
        assert given.logprob == pytest.approx(float(row[token_id]), abs=1e-5)
        assert [token_id for token_id, _ in given.top] == row.topk(2).indices.tolist()


def cancel_in_queue(rig: Rig, prompt: list[int], listener: Watched, hold: threading.Event) -> None:
    blockers = [rig.submit(prompt_of(5, seed=n), Watched(hold), max_tokens=5) for n in range(MAX_BATCH)]
    ticket = rig.schedule.submit(prompt, SamplingOptions(max_tokens=100), listener)
    rig.schedule.cancel(ticket)
    assert listener.ended.is_set()
    hold.set()
    for blocker in blockers:
        finished(blocker)


def cancel_in_prefill(rig: Rig, prompt: list[int], listener: Watched, hold: threading.Event) -> None:
    blocker = Watched(hold)
    rig.submit(prompt_of(5), blocker, max_tokens=5)
    assert blocker.first.wait(60)
    ticket: Ticket = rig.schedule.submit(prompt, SamplingOptions(max_tokens=100), listener)
    blocker.hold = step = threading.Event()
    forward = rig.runner.forward

    def cancelling(parts: Sequence[Part]) -> torch.Tensor:
        if any(part.count > 100 for part in parts):  # its first piece
            rig.schedule.cancel(ticket)
        return forward(parts)

    rig.runner.forward = cancelling  # type: ignore[method-assign]
    step.set()
    hold.set()
    finished(blocker)


def cancel_in_decode(rig: Rig, prompt: list[int], listener: Watched, hold: threading.Event) -> None:
    listener.hold = hold
    ticket = rig.schedule.submit(prompt, SamplingOptions(max_tokens=100), listener)
    assert listener.first.wait(60)
    rig.schedule.cancel(ticket)
    hold.set()


@pytest.mark.parametrize("cancel", [cancel_in_queue, cancel_in_prefill, cancel_in_decode])
def test_a_cancelled_one_leaves_and_the_next_one_runs(rig: Rig, cancel: Callable[..., None]) -> None:
    listener, prompt = Watched(), prompt_of(300)
    cancel(rig, prompt, listener, threading.Event())
    assert listener.ended.wait(60)
    assert listener.error is None
    assert len(listener.tokens) == (cancel is cancel_in_decode)
    assert rig.run(prompt, max_tokens=8).tokens == rig.expected(prompt, 8)
    wait_for(lambda: rig.schedule.cache_use().used_fraction == 0)


@pytest.mark.parametrize("times", [1, 2])
def test_a_failed_step_ends_its_newest_request_only(
    rig: Rig, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A forward that fails after it has written half of the layers."""
    attend, left = rig.runner.cache.attend, [0]

    def failing(layer: int, *arguments: Any) -> torch.Tensor:
        if layer == 1 and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("fault")
        return attend(layer, *arguments)

    monkeypatch.setattr(rig.runner.cache, "attend", failing)
    hold = threading.Event()
    running = Watched(hold)
    rig.submit(prompt_of(50), running, max_tokens=20)
    assert running.first.wait(60)
    left[0] = times
    other = rig.submit(prompt_of(300, seed=1), max_tokens=5)
    hold.set()
    for listener in (running, other):
        assert listener.ended.wait(60)
    assert isinstance(other.error, torch.OutOfMemoryError)
    assert "its newest request ends" in caplog.text
    if times == 1:
        assert finished(running).tokens == rig.expected(prompt_of(50), 20)
    else:
        assert isinstance(running.error, torch.OutOfMemoryError)
    for seed, length in ((0, 50), (1, 300)):
        prompt = prompt_of(length, seed=seed)
        assert rig.run(prompt, max_tokens=8).tokens == rig.expected(prompt, 8)
    assert rig.schedule.cache_use().used_fraction == 0


class Broken(Collector):
    """A listener with a fault of its own."""

    def __init__(self, at_start: bool) -> None:
        super().__init__()
        self.at_start = at_start

    def on_start(self) -> None:
        if self.at_start:
            raise ValueError("fault")

    def on_token(self, token_id: int, logprobs: Any) -> bool:
        raise ValueError("fault")


@pytest.mark.parametrize("at_start", [True, False])
def test_after_a_fault_of_a_listener_the_next_one_runs(
    rig: Rig, at_start: bool, caplog: pytest.LogCaptureFixture
) -> None:
    broken = rig.submit(prompt_of(20), Broken(at_start), max_tokens=5)
    assert broken.ended.wait(60)
    assert isinstance(broken.error, ValueError)
    assert "failed" in caplog.text
    assert rig.run(prompt_of(50), max_tokens=8).tokens == rig.expected(prompt_of(50), 8)
    assert rig.schedule.cache_use().used_fraction == 0


def test_the_cache_is_counted_and_kept(rig: Rig) -> None:
    hold = threading.Event()
    watched = Watched(hold)
    assert rig.schedule.cache_use().held_bytes == 0
    rig.submit(prompt_of(100), watched, max_tokens=5)
    assert watched.first.wait(60)
    use = rig.schedule.cache_use()
    hold.set()
    finished(watched)
    wait_for(lambda: rig.schedule.cache_use().used_fraction == 0)
    assert use.used_fraction == pytest.approx(7 / (4 * CONTEXT_TOKENS // PAGE_TOKENS)), "pages for 100 tokens"
    page_bytes = rig.runner.cache.nbytes // rig.runner.cache.pages
    assert rig.schedule.cache_use().held_bytes == 7 * page_bytes, "kept for a prompt like it"
