"""pass@k is the exact share of k-subsets with a solution, and its interval treats a task as one draw."""

from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_training.evaluation.pass_at_k import (
    TooFewSamples,
    bootstrap_interval,
    by_program,
    mean_pass_at_k,
    pass_at_k,
)


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


def test_the_interval_is_of_programs_not_of_their_holes() -> None:
    """A hundred holes in each program do not make the interval narrower than four programs allow."""
    solved = [1.0, 1.0, 0.0, 0.0]
    tasks = {f"HumanEval/{program}": value for program, value in enumerate(solved)}
    holes = {f"{program}/L{line}": value for program, value in tasks.items() for line in range(100)}
    assert [len(program) for program in by_program(holes)] == [100] * 4
    one, many = (bootstrap_interval(by_program(values), seed=3) for values in (tasks, holes))
    assert one == many
    assert one[0] < 0.5 < one[1]


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    groups = [[pass_at_k(10, solved, 5)] for solved in range(11)]
    assert bootstrap_interval(groups, seed=1) == bootstrap_interval(groups, seed=1)
    assert bootstrap_interval([[1.0]] * 5) == (1, 1)
