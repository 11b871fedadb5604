"""pass@k is the exact share of k-subsets with a solution, and its interval treats a task as one draw."""

from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_bench.pass_at_k import TooFewSamples, mean_pass_at_k, pass_at_k, pass_at_k_interval


@settings(deadline=None)
@given(st.data())
def test_it_equals_the_binomial_formula(data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 500))
    solved, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    exact = 1 - Fraction(comb(samples - solved, k), comb(samples, k))
    assert pass_at_k(samples, solved, k) == pytest.approx(float(exact), abs=1e-12)


def test_it_counts_the_subsets_that_hold_a_solution() -> None:
    samples = [True, True, False, False, False, False]
    subsets = list(combinations(samples, 3))
    assert pass_at_k(6, 2, 3) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_not_pass_at_n() -> None:
    """deepeval #2967: one hit in ten tries is not certain to be among any one."""
    assert pass_at_k(10, 1, 1) == pytest.approx(0.1)
    assert pass_at_k(10, 1, 10) == 1
    assert pass_at_k(200, 0, 100) == 0


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(TooFewSamples, match=r"pass@10 needs 10 samples a task, there are 5"):
        pass_at_k(5, 5, 10)


def test_the_suites_figure_is_the_mean_over_tasks() -> None:
    assert mean_pass_at_k([(1, 1), (1, 0), (4, 2)], 1) == pytest.approx(0.5)


def test_the_interval_is_of_tasks_not_of_samples() -> None:
    """A hundred samples of each task do not make the interval narrower than its four tasks allow."""
    one = pass_at_k_interval([(1, 1), (1, 1), (1, 0), (1, 0)], 1, seed=3)
    many = pass_at_k_interval([(100, 100), (100, 100), (100, 0), (100, 0)], 1, seed=3)
    assert one == many
    assert one[0] < 0.5 < one[1]


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    tasks = [(10, solved) for solved in range(11)]
    assert pass_at_k_interval(tasks, 5, seed=1) == pass_at_k_interval(tasks, 5, seed=1)
    assert pass_at_k_interval([(3, 3)] * 5, 1) == (1, 1)
