"""Continuous batching: company, chunks, reused prefixes and failures change nobody's tokens."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collector import Collector
from support.served import wait_for
from transformers import AutoModelForCausalLM

from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions
from pangu_server.backends.torch import rows
from pangu_server.backends.torch.continuous import ContinuousSchedule
from pangu_server.backends.torch.rows import Row

CONTEXT_TOKENS = 512  # of the tiny models here; more than two chunks
VOCABULARY = 300  # of the ids that prompts are made of
MAX_BATCH = 4
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


class Rig:
    """A model, its schedule, and what transformers says."""

    def __init__(self, folder: Path, max_batch: int = MAX_BATCH) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.repetition_penalty = 1.0
        self.batches: list[int] = []
        self.schedule = ContinuousSchedule(
            self.model, max_batch=max_batch, context_length=CONTEXT_TOKENS, on_batch=self.batches.append
        )
        self.schedule.start()

    def submit(self, prompt: list[int], listener: Collector | None = None, **options: Any) -> Collector:
        listener = listener or Collector()
        self.schedule.submit(prompt, SamplingOptions(**{"temperature": 0, **options}), listener)
        return listener

    def run(self, prompt: list[int], **options: Any) -> Collector:
        return finished(self.submit(prompt, **options))

    def expected(self, prompt: list[int], count: int) -> list[int]:
        """transformers' own greedy tokens."""
        ids = torch.tensor([prompt])
        whole = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return [int(token_id) for token_id in whole[0, len(prompt) :]]

    def logs(self, tokens: list[int]) -> torch.Tensor:
        """transformers' own log-probabilities (tokens, vocabulary)."""
        with torch.inference_mode():
            logs: torch.Tensor = self.model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
        return logs


def finished(listener: Collector) -> Collector:
    assert listener.ended.wait(120)
    assert listener.error is None
    return listener


@pytest.fixture(scope="module", params=["gpt_bigcode", "llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny import tiny_config

    length = "n_positions" if request.param == "gpt_bigcode" else "max_position_embeddings"
    torch.manual_seed(1)
    config = tiny_config(request.param, 400, **{length: CONTEXT_TOKENS})
    path = tmp_path_factory.mktemp("tiny") / str(request.param)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    return path


@pytest.fixture
def rig(folder: Path) -> Iterator[Rig]:
    rig = Rig(folder)
    yield rig
    rig.schedule.close()


def prompt_of(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, VOCABULARY) for _ in range(length)]


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


def test_a_row_keeps_its_slot_for_life(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody moves when one in the middle ends, whose place the next prompt takes."""
    slots: dict[Ticket, set[int]] = defaultdict(set)
    gaps: set[tuple[int, ...]] = set()
    forward = rig.schedule._runner.forward

    def watched(rows: Sequence[Row], count: int, *, keep: int) -> torch.Tensor:
        for row in rows:
            assert row.ticket
            slots[row.ticket].add(row.slot)
        gaps.add(tuple(second.slot - first.slot for first, second in pairwise(rows)))
        return forward(rows, count, keep=keep)

    monkeypatch.setattr(rig.schedule._runner, "forward", watched)
    hold = threading.Event()
    prompts = [(prompt_of(20, seed=seed), 4 if seed == 1 else 40) for seed in range(MAX_BATCH)]
    listeners = [
        rig.submit(prompt, Watched(hold if seed == 0 else None), max_tokens=count)
        for seed, (prompt, count) in enumerate(prompts)
    ]
    hold.set()
    # A turn computes all four prompts, so by then the others have gone on without the second one.
    wait_for(lambda: len(listeners[0].tokens) >= 10)
    prompts.append((prompt_of(30, seed=9), 8))
    listeners.append(rig.submit(prompts[-1][0], max_tokens=8))
    for (prompt, count), listener in zip(prompts, listeners, strict=True):
        assert finished(listener).tokens == rig.expected(prompt, count)
    assert all(len(places) == 1 for places in slots.values())
    assert {(1, 1, 1), (2, 1)} <= gaps, "all in a row, and without the second one"


@pytest.mark.real_model
def test_a_real_model_in_company_too(smollm2: Path) -> None:
    rig = Rig(smollm2)
    prompts = [(prompt_of(length, seed=length), 12) for length in (1, 40, 150, 300)]
    prompts.append(([*prompts[2][0][:140], 5, 6], 12))
    listeners = [rig.submit(prompt, max_tokens=count) for prompt, count in prompts]
    for (prompt, count), listener in zip(prompts, listeners, strict=True):
        assert finished(listener).tokens == rig.expected(prompt, count)
    rig.schedule.close()


def test_samples_of_one_prompt_compute_it_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    forward = rig.model.forward

    def counted(**inputs: Any) -> Any:
        computed.append(inputs["input_ids"].numel())
        return forward(**inputs)

    monkeypatch.setattr(rig.model, "forward", counted)
    prompt = prompt_of(200)
    listeners = [rig.submit(prompt, max_tokens=4) for _ in range(4)]
    tokens = [finished(listener).tokens for listener in listeners]
    assert sum(computed) <= len(prompt) + 4 * 4
    finished(rig.submit([*prompt, *tokens[0], 7], max_tokens=1))
    assert sum(computed) <= len(prompt) + 4 * 4 + 2, "nor after they have ended, with one of the answers"
    assert all(sample == tokens[0] for sample in tokens)


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
    forward = rig.model.forward

    def cancelling(**inputs: Any) -> Any:
        if inputs["input_ids"].numel() > 100:  # its first chunk
            rig.schedule.cancel(ticket)
        return forward(**inputs)

    rig.model.forward = cancelling
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
    assert rig.schedule.cache_use().used_fraction == 0


@pytest.mark.parametrize("at_prompt", [True, False])
def test_a_failure_ends_its_own_rows_only(
    rig: Rig, at_prompt: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A forward that fails after it has written half of the layers."""
    update, armed = rig.schedule._slots.update, threading.Event()

    def failing(key: torch.Tensor, value: torch.Tensor, layer: int) -> Any:
        if layer == 1 and armed.is_set() and (key.shape[2] > 1) == at_prompt:
            armed.clear()
            raise torch.OutOfMemoryError("fault")
        return update(key, value, layer)

    monkeypatch.setattr(rig.schedule._slots, "update", failing)
    hold = threading.Event()
    running = Watched(hold)
    rig.submit(prompt_of(50), running, max_tokens=20)
    assert running.first.wait(60)
    armed.set()
    other = rig.submit(prompt_of(300, seed=1), max_tokens=5)
    hold.set()
    assert running.ended.wait(60)
    assert other.ended.wait(60)
    failed, fine = (other, running) if at_prompt else (running, other)
    assert isinstance(failed.error, torch.OutOfMemoryError)
    assert "generation failed" in caplog.text
    if fine is running:
        assert finished(running).tokens == rig.expected(prompt_of(50), 20)
    for seed, length in ((0, 50), (1, 300)):
        prompt = prompt_of(length, seed=seed)
        assert rig.run(prompt, max_tokens=8).tokens == rig.expected(prompt, 8)


class Broken(Collector):
    """A listener with a fault of its own."""

    def on_start(self) -> None:
        raise ValueError("fault")


def test_after_a_fault_of_the_server_s_own_the_next_one_runs(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    hold = threading.Event()
    running = Watched(hold)
    rig.submit(prompt_of(50), running, max_tokens=400)
    assert running.first.wait(60)
    broken = rig.submit(prompt_of(20), Broken(), max_tokens=5)
    hold.set()
    for listener in (running, broken):
        assert listener.ended.wait(60)
        assert isinstance(listener.error, ValueError)
    assert "generation failed" in caplog.text
    assert rig.run(prompt_of(50), max_tokens=8).tokens == rig.expected(prompt_of(50), 8)


def test_the_cache_is_counted_kept_and_released(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    watched = Watched(hold)
    assert rig.schedule.cache_use().held_bytes == 0
    rig.submit(prompt_of(100), watched, max_tokens=5)
    assert watched.first.wait(60)
    use = rig.schedule.cache_use()
    hold.set()
    finished(watched)
    assert use.used_fraction == pytest.approx(100 / (MAX_BATCH * CONTEXT_TOKENS))
    small = rig.schedule.cache_use()
    assert small.used_fraction == 0
    assert use.held_bytes == small.held_bytes > 0, "kept for a prompt like it"
    listeners = [rig.submit(prompt_of(300, seed=seed), max_tokens=60) for seed in range(8)]
    for listener in listeners:
        finished(listener)
    full = rig.schedule.cache_use().held_bytes
    assert full == small.held_bytes * MAX_BATCH * CONTEXT_TOKENS // 128, "all rows, twice doubled"
    monkeypatch.setattr(rows, "KEPT_BYTES", 0)
    rig.run(prompt_of(100), max_tokens=1)
    deadline = time.monotonic() + 60
    while rig.schedule.cache_use().held_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rig.schedule.cache_use().held_bytes == 0
    prompt = prompt_of(200)
    assert rig.run(prompt, max_tokens=8).tokens == rig.expected(prompt, 8)
