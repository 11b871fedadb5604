"""The CTranslate2 backend against transformers' logits: every sampling option, alone and in company."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.collector import Collector
from support.commands import Artifacts
from transformers import AutoModelForCausalLM

from pangu_convert.artifact import read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.ctranslate2.batches import BatchSchedule
from pangu_server.backends.sampling import Logits, Sampler, token_logprobs
from pangu_server.backends.seam import Backend, CacheUse, LoadOptions, SamplingOptions

PROMPT = [589, 28176, 34, 83, 711, 203, 202]  # any tokens
OPTIONS = {
    "greedy": SamplingOptions(max_tokens=12, temperature=0),
    "logprobs": SamplingOptions(max_tokens=6, temperature=0, logprobs=5, prompt_logprobs=2),
    "seed": SamplingOptions(max_tokens=8, temperature=0.2, seed=7),
    "cut": SamplingOptions(max_tokens=8, temperature=0.9, top_k=40, top_p=0.8, min_p=0.02, seed=1),
    "penalties": SamplingOptions(
        max_tokens=12, temperature=0, repetition_penalty=1.4, presence_penalty=1.5, frequency_penalty=0.5
    ),
    "bias": SamplingOptions(max_tokens=6, temperature=0, logit_bias=((11, 100.0), (12, 99.0)), logprobs=0),
    "ends": SamplingOptions(max_tokens=9, temperature=0, end_token_ids=(11,), logit_bias=((11, 100.0),)),
    "min_tokens": SamplingOptions(
        max_tokens=9, temperature=0, end_token_ids=(11,), logit_bias=((11, 100.0),), min_tokens=4
    ),
    "prompt only": SamplingOptions(max_tokens=0, prompt_logprobs=0),
}


@pytest.fixture(scope="module")
def batch_sizes() -> list[int]:
    return []


@pytest.fixture(scope="module")
def backend(artifacts: Artifacts, batch_sizes: list[int]) -> Iterator[Backend]:
    artifact = read_artifact(artifacts("tiny_starcoder", "ctranslate2", "--quantization", "float32"))
    backend = load_backend(artifact, LoadOptions(device="cpu", max_batch=8, on_batch=batch_sizes.append))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def expected(tiny_starcoder: Path) -> dict[str, Collector]:
    """What each of OPTIONS must give, by transformers' logits and the definition of sampling."""
    model = AutoModelForCausalLM.from_pretrained(tiny_starcoder, dtype=torch.float32).eval()

    def forward(tokens: Sequence[int]) -> Logits:
        with torch.inference_mode():
            logits: Logits = model(torch.tensor([list(tokens)])).logits[0].numpy()
            return logits

    return {name: reference(forward, options) for name, options in OPTIONS.items()}


def reference(forward: Callable[[Sequence[int]], Logits], options: SamplingOptions) -> Collector:
    collector, sampler, tokens = Collector(), Sampler(PROMPT, options), list(PROMPT)
    if (top := options.prompt_logprobs) is not None:
        rows = forward(PROMPT)
        scored = [token_logprobs(row, token, top) for row, token in zip(rows, PROMPT[1:], strict=False)]
        collector.on_prompt([None, *scored])
    while len(collector.tokens) < options.max_tokens:
        logits = forward(tokens)[-1]
        tokens.append(token_id := sampler(logits))
        top = options.logprobs
        collector.on_token(token_id, None if top is None else token_logprobs(logits, token_id, top))
        if token_id in options.end_token_ids:
            break
    return collector


def submit(backend: Backend, options: SamplingOptions, prompt: Sequence[int] = PROMPT) -> Collector:
    collector = Collector()
    backend.submit(prompt, options, collector)
    return collector


def assert_equal(actual: Collector, expected: Collector) -> None:
    assert actual.ended.wait(60)
    assert actual.error is None
    assert actual.tokens == expected.tokens
    for told, true in (
        *zip(actual.logprobs, expected.logprobs, strict=True),
        *zip(actual.prompt_logprobs, expected.prompt_logprobs, strict=True),
    ):
        assert (told is None) == (true is None)
        if told is not None and true is not None:
            assert told.logprob == pytest.approx(true.logprob, abs=1e-4)
            assert [token for token, _ in told.top] == [token for token, _ in true.top]
            assert np.allclose([log for _, log in told.top], [log for _, log in true.top], atol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_does_what_sampling_defines(
    name: str, backend: Backend, expected: dict[str, Collector]
) -> None:
    assert_equal(submit(backend, OPTIONS[name]), expected[name])


@pytest.mark.parametrize("piece", [1, 2, len(PROMPT) - 1, len(PROMPT)])
@pytest.mark.parametrize("name", ["logprobs", "prompt only"])
def test_a_prompt_is_scored_in_pieces(
    name: str,
    piece: int,
    backend: Backend,
    expected: dict[str, Collector],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "piece", piece)
    assert_equal(submit(backend, OPTIONS[name]), expected[name])


def test_scoring_a_long_prompt_is_cancelled_in_its_middle(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "piece", 2)
    told: list[object] = []

    class Early(Collector):
        def on_prompt(self, logprobs: object) -> None:
            told.append(logprobs)

    ticket = backend.submit(PROMPT * 100, OPTIONS["prompt only"], early := Early())
    while not getattr(ticket, "scored"):  # noqa: B009
        early.ended.wait(0.01)
    backend.cancel(ticket)
    assert early.ended.wait(60)
    assert not told


@pytest.mark.parametrize("others", ["run at every step", "as it comes", "in pieces"])
def test_float32_results_do_not_depend_on_company(
    others: str, backend: Backend, expected: dict[str, Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    if others == "in pieces":
        monkeypatch.setattr(backend, "piece", 3)
    if others != "as it comes":
        monkeypatch.setattr(BatchSchedule, "_due", lambda self, *_: bool(self.waiting or self._paused))
    noise = [
        submit(backend, SamplingOptions(max_tokens=30, temperature=temperature), PROMPT * length)
        for temperature, length in ((0, 1), (0.8, 1), (0, 2), (0, 20))
    ]
    company = {name: submit(backend, options) for name, options in OPTIONS.items()}
    for name, collector in company.items():
        assert_equal(collector, expected[name])
    for collector in noise:
        assert collector.ended.wait(60)
        assert collector.error is None
        assert len(collector.tokens) == 30
    assert backend.cache_use().held_bytes == 0


def test_samples_of_one_prompt_are_one_batch_and_differ(backend: Backend, batch_sizes: list[int]) -> None:
    class Blocker(Collector):
        def on_token(self, token_id: int, logprobs: object) -> bool:
            return arrived.wait(60)

    arrived = threading.Event()
    backend.submit(PROMPT, OPTIONS["greedy"], blocker := Blocker())
    options = SamplingOptions(max_tokens=10, temperature=0.8, top_p=0.95)
    samples = [submit(backend, options) for _ in range(6)]
    arrived.set()
    for collector in (blocker, *samples):
        assert collector.ended.wait(60)
        assert collector.error is None
    assert len({tuple(collector.tokens) for collector in samples}) == 6
    assert 6 in batch_sizes


def test_the_cache_is_counted_while_it_is_held(backend: Backend) -> None:
    class Reader(Collector):
        def on_token(self, token_id: int, logprobs: object) -> bool:
            uses.append(backend.cache_use())
            return len(uses) == 3  # and the stop is obeyed

    uses: list[CacheUse] = []
    backend.submit(PROMPT, OPTIONS["greedy"], reader := Reader())
    assert reader.ended.wait(60)
    # two layers, one head of 16 for keys and one for values, float32
    assert [use.held_bytes for use in uses] == [2 * 2 * 16 * 4 * (len(PROMPT) + new) for new in (1, 2, 3)]
    assert uses[0].used_fraction == pytest.approx((len(PROMPT) + 1) / (8 * 256))


def test_a_failing_listener_fails_its_batch_and_the_next_one_runs(
    backend: Backend, expected: dict[str, Collector], caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Collector):
        def on_token(self, token_id: int, logprobs: object) -> bool:
            raise ValueError("fault")

    backend.submit(PROMPT, OPTIONS["greedy"], faulty := Faulty())
    assert faulty.ended.wait(60)
    assert isinstance(faulty.error, ValueError)
    assert "generation failed" in caplog.text
    assert_equal(submit(backend, OPTIONS["greedy"]), expected["greedy"])
