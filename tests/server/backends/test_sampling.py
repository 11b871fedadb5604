"""The sampler against the distributions that its options define, computed here the long way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_server.backends.sampling import Logits, Sampler, highest, pick, token_logprobs
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


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (2, 1.0, [0, 2, 3]),
        (3, 1.0, [0, 2, 3]),
        (0, 0.6, [0, 2, 3]),  # 0.51 is not enough, and the next two are equal
        (0, 0.4, [2]),
        (2, 0.6, [0, 2, 3]),  # 0.58 of what top-k left is not enough
        (2, 0.55, [2]),
    ],
)
def test_tokens_tied_with_the_last_one_kept_are_kept(top_k: int, top_p: float, expected: list[int]) -> None:
    logits = np.array([2.0, 1.0, 3.0, 2.0, 0.5], dtype=np.float32)
    numbers = (np.arange(1000) + 0.5) / 1000
    drawn = [pick(logits, 1.0, top_k, top_p, 0.0, number) for number in numbers]
    assert drawn == sorted(drawn), "in the order of ids"
    counts = np.bincount(drawn, minlength=logits.size)
    assert counts / 1000 == pytest.approx(cut(softmax(logits), expected), abs=1e-3)


def test_of_equal_best_tokens_a_top_k_of_one_takes_the_lowest_id() -> None:
    logits = np.array([1.0, 3.0, 3.0], dtype=np.float32)
    assert {Sampler([], options(seed=seed, top_k=1))(logits) for seed in range(20)} == {1}


def by_definition(logits: Logits, cuts: tuple[float, int, float, float], uniform: float) -> int:
    """What `pick` must give, in double precision, and sorted."""
    temperature, top_k, top_p, min_p = cuts
    weights = softmax((logits - logits.max()) / temperature)
    if 0 < top_k < logits.size:
        weights[logits < np.sort(logits)[-top_k]] = 0
    if top_p < 1:
        best_first = np.sort(weights)[::-1]
        reached = np.searchsorted(best_first.cumsum(), top_p * weights.sum())
        weights[weights < best_first[min(reached, logits.size - 1)]] = 0
    weights[weights < min_p * weights.max()] = 0
    return int(np.searchsorted(weights.cumsum(), uniform * weights.sum(), side="right"))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, 40, 700, 5000]),
    st.sampled_from([0.0, 0.25]),  # distance between logits: some are equal
    st.floats(0.1, 2),
    st.integers(0, 800),
    st.floats(0.01, 1),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=300)
def test_a_number_falls_on_the_token_that_the_definition_says(
    seed: int,
    vocabulary: int,
    grid: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, vocabulary).astype(np.float32)
    if grid:
        logits = np.round(logits / grid) * np.float32(grid)
    token = pick(logits, temperature, top_k, top_p, min_p, uniform)
    near = 3e-6  # single precision: on the edge of two tokens it may be either of them
    spans = [
        [by_definition(logits, (temperature, top_k, p, m), u) for u in (uniform - near, uniform + near)]
        for p in (top_p, top_p * (1 - near), min(1, top_p * (1 + near)))
        for m in (min_p, min_p * (1 - near), min_p * (1 + near))
    ]
    assert any(first <= token <= last for first, last in spans)


def test_a_completion_goes_on_from_the_tokens_it_has() -> None:
    wanted = options(seed=5, repetition_penalty=1.3, frequency_penalty=0.4, min_tokens=3, end_token_ids=(1,))
    rows = np.random.default_rng(0).normal(0, 3, (6, 40)).astype(np.float32)
    whole = Sampler([1, 2], wanted)
    tokens = [whole(logits) for logits in rows]
    late = Sampler([1, 2], wanted, tokens[:2])
    assert [late(logits) for logits in rows[2:]] == tokens[2:]
    # The same as a draft that is verified at once.
    first = Sampler([1, 2], wanted, tokens[:2])
    assert [first.choose(rows[d], d, tokens[2:d]) for d in range(2, 6)] == tokens[2:]


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


def test_logprobs_of_a_large_vocabulary_are_right_to_1e_6() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 100_000).astype(np.float32)
    expected = np.log(softmax(logits))
    for token_id in (0, 70_000, int(logits.argmax())):
        assert token_logprobs(logits, token_id, 0).logprob == pytest.approx(expected[token_id], abs=1e-6)


def test_equal_logits_are_ordered_by_id() -> None:
    assert highest(np.array([1, 3, 3, 2, 3], dtype=np.float32), 3).tolist() == [1, 2, 4]
    assert highest(np.zeros(4, dtype=np.float32), 9).tolist() == [0, 1, 2, 3]
    many = np.tile(np.array([0, 5, 1, 5], dtype=np.float32), 50)
    assert highest(many, 3).tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        ({}, True),
        ({"seed": 3}, True),  # an argmax draws nothing
        ({"top_p": 0.5}, True),
        ({"temperature": 0.9, "top_k": 1}, True),
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
