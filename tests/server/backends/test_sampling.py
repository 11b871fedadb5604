"""The sampler against the distributions that its options define, computed here the long way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_server.backends.sampling import Logits, Sampler, highest, token_logprobs
from pangu_server.backends.seam import SamplingOptions

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -4.0], dtype=np.float32)
DRAWS = 4000


def options(**values: Any) -> SamplingOptions:
    return SamplingOptions(max_tokens=9, **values)


def softmax(logits: Any) -> Any:
    weights = np.exp(np.asarray(logits, dtype=np.float64))
    return weights / weights.sum()


def frequencies(logits: Logits, **values: Any) -> Any:
    """How often each token is drawn as the first one."""
    counts = np.zeros(logits.size)
    for seed in range(DRAWS):
        counts[Sampler([], options(seed=seed, **values))(logits)] += 1
    return counts / DRAWS


def cut(probabilities: Any, kept: list[int]) -> Any:
    mask = np.zeros(len(probabilities))
    mask[kept] = 1
    return probabilities * mask / (probabilities * mask).sum()


P = softmax(LOGITS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, P),
        ({"temperature": 0.5}, softmax(LOGITS / 0.5)),
        ({"top_k": 2}, cut(P, [0, 1])),
        ({"top_p": 0.7}, cut(P, [0, 1])),  # 0.56 is not enough, 0.77 is
        ({"top_p": P[0] - 1e-6}, cut(P, [0])),
        ({"min_p": 0.2}, cut(P, [0, 1, 2])),  # of the best one's probability
        ({"top_k": 3, "top_p": 0.7}, cut(P, [0, 1])),  # top-p of what top-k left
        ({"temperature": 2.0, "top_p": 0.5}, cut(softmax(LOGITS / 2), [0, 1])),
        ({"logit_bias": ((5, 6.0), (0, -100.0))}, softmax(LOGITS + np.array([-100, 0, 0, 0, 0, 6.0]))),
        ({"min_tokens": 1, "end_token_ids": (0, 1)}, cut(P, [2, 3, 4, 5])),
    ],
)
def test_draws_follow_the_distribution(values: dict[str, Any], expected: Any) -> None:
    drawn = frequencies(LOGITS, **values)
    assert not drawn[expected < 1e-9].any(), "what is cut off is never drawn"
    # 4.5 standard deviations of a binomial count: the seeds are fixed, so this never changes.
    assert np.all(np.abs(drawn - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-9)


def test_penalties_count_what_was_generated() -> None:
    logits = np.array([1.0, 0.9, 0.0], dtype=np.float32)
    frequency = Sampler([1, 1, 1], options(temperature=0, frequency_penalty=0.3))
    # 1.0, then 0.7 < 0.9, then 0.7 > 0.6, then 0.4 < 0.6, …: the prompt does not count
    assert [frequency(logits) for _ in range(4)] == [0, 1, 0, 1]
    presence = Sampler([], options(temperature=0, presence_penalty=0.3))
    assert [presence(logits) for _ in range(4)] == [0, 1, 0, 0], "once, however often it came"


def test_the_repetition_penalty_counts_the_prompt_and_respects_signs() -> None:
    logits = np.array([1.0, 0.9, -0.5, -0.6], dtype=np.float32)
    sampler = Sampler([0], options(temperature=0, repetition_penalty=2.0))
    assert sampler(logits) == 1
    negative = np.array([-0.5, -0.6], dtype=np.float32)
    assert Sampler([0], options(temperature=0, repetition_penalty=2.0))(negative) == 1


def test_end_tokens_may_come_after_the_least_number_of_tokens() -> None:
    sampler = Sampler([], options(temperature=0, min_tokens=2, end_token_ids=(0,)))
    assert [sampler(LOGITS) for _ in range(3)] == [1, 1, 0]


@given(st.integers(0, 2**64 - 1), st.floats(0.1, 2), st.floats(0.05, 1), st.integers(0, 40))
@settings(max_examples=50)
def test_a_seed_repeats_and_large_vocabularies_agree_with_sorting(
    seed: int, temperature: float, top_p: float, top_k: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, 3000).astype(np.float32)
    wanted = options(seed=seed, temperature=temperature, top_p=top_p, top_k=top_k)
    first, second = Sampler([], wanted), Sampler([], wanted)
    tokens = [first(logits) for _ in range(5)]
    assert tokens == [second(logits) for _ in range(5)]
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    sorted_probabilities = softmax(logits[order].astype(np.float64) / temperature)
    keep = int(np.searchsorted(sorted_probabilities.cumsum(), top_p - 1e-12)) + 1
    assert set(tokens) <= set(order[:keep].tolist())


def test_logits_are_left_as_they_are() -> None:
    logits = LOGITS.copy()
    Sampler([0], options(repetition_penalty=3.0, logit_bias=((1, 5.0),), presence_penalty=1.0))(logits)
    assert np.array_equal(logits, LOGITS)


def test_logprobs_are_the_models_own() -> None:
    entry = token_logprobs(LOGITS, 4, 2)
    assert entry.logprob == pytest.approx(np.log(P[4]))
    assert [token_id for token_id, _ in entry.top] == [0, 1]
    assert [value for _, value in entry.top] == pytest.approx(np.log(P[:2]).tolist())
    assert token_logprobs(LOGITS, 0, 0).top == ()


def test_equal_logits_are_ordered_by_id() -> None:
    assert highest(np.array([1, 3, 3, 2, 3], dtype=np.float32), 3).tolist() == [1, 2, 4]
    assert highest(np.zeros(4, dtype=np.float32), 9).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        ({}, True),
        ({"seed": 3}, True),  # an argmax draws nothing
        ({"top_p": 0.5}, True),
        ({"temperature": 0.1}, False),
        ({"logit_bias": ((1, 1.0),)}, False),
        ({"min_tokens": 1}, False),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": -0.1}, False),
        ({"repetition_penalty": 1.1}, False),
    ],
)
def test_what_an_argmax_decides(values: dict[str, Any], plain: bool) -> None:
    assert Sampler.is_argmax(options(**{"temperature": 0, **values})) is plain
