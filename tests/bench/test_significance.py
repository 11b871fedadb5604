"""Known answers: McNemar by brute force, Table 4 of PanGu-Coder2 by its counts, tabulated intervals."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_bench.significance import (
    UnpairedError,
    compare,
    mcnemar,
    mcnemar_bounds,
    minimum_detectable_difference,
    sign_flip,
    verdict,
    verdict_without_flips,
)
from pangu_training.evaluation.intervals import wilson

FP16, CT2_INT8, GPTQ_INT8, GPTQ_INT4 = 102, 106, 84, 85  # of 164


def results(gained: int, lost: int, problems: int = 164) -> tuple[dict[str, float], dict[str, float]]:
    """Greedy results with this many flips, all else solved by both."""
    tasks = [f"HumanEval/{number}" for number in range(problems)]
    baseline, candidate = dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, 1.0)
    baseline |= dict.fromkeys(tasks[:gained], 0.0)
    candidate |= dict.fromkeys(tasks[gained : gained + lost], 0.0)
    return baseline, candidate


@pytest.mark.parametrize(("gained", "lost"), [(gained, lost) for gained in range(7) for lost in range(7)])
def test_mcnemar_is_the_share_of_coin_throws_as_uneven(gained: int, lost: int) -> None:
    flips = gained + lost
    as_uneven = [abs(2 * sum(throw) - flips) >= abs(gained - lost) for throw in product((0, 1), repeat=flips)]
    assert mcnemar(gained, lost) == pytest.approx(sum(as_uneven) / len(as_uneven))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 6), (3, 5), (30, 48)])
def test_programs_of_one_problem_are_mcnemars_test(gained: int, lost: int) -> None:
    assert sign_flip([1] * gained + [-1] * lost + [0] * 9) == pytest.approx(mcnemar(gained, lost))


def test_flips_of_one_program_count_together() -> None:
    sums = [3, -1, 2, 0]
    throws = [
        sum(s * size for s, size in zip(signs, sums, strict=True)) for signs in product((1, -1), repeat=4)
    ]
    assert sign_flip(sums) == pytest.approx(sum(abs(total) >= 4 for total in throws) / len(throws))
    holes = [f"SingleLineInfilling/HumanEval/{program}/L{line}" for program in (7, 81) for line in range(8)]
    baseline = dict.fromkeys(holes, 1.0)
    candidate = baseline | dict.fromkeys(holes[8:], 0.0)
    found = compare(baseline, candidate)
    assert (len(found.lost), found.p_value) == (8, 1.0), "one program decides nothing"
    assert not found.is_real
    assert found.interval == (-1, 0), "each draw has both programs, or twice one of them"


def test_six_flips_one_way_are_the_fewest_that_count() -> None:
    assert mcnemar(0, 6) == pytest.approx(0.03125)
    assert mcnemar(5, 0) == pytest.approx(0.0625)
    assert mcnemar(0, 0) == 1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.data())
def test_the_bounds_hold_for_every_overlap(problems: int, data: st.DataObject) -> None:
    baseline = data.draw(st.lists(st.booleans(), min_size=problems, max_size=problems))
    candidate = data.draw(st.lists(st.booleans(), min_size=problems, max_size=problems))
    pairs = list(zip(baseline, candidate, strict=True))
    p_value = mcnemar(pairs.count((False, True)), pairs.count((True, False)))
    low, high = mcnemar_bounds(problems, sum(baseline), sum(candidate))
    assert low <= p_value <= high


def test_table_4_int8_gain_is_noise_whichever_problems_they_are() -> None:
    low, high = mcnemar_bounds(164, FP16, CT2_INT8)
    assert low == pytest.approx(0.125)
    assert high > 0.7
    assert verdict_without_flips(164, FP16, CT2_INT8).startswith(
        "inside noise: +2.4 points; p is between 0.12"
    )


@pytest.mark.parametrize(
    ("solved", "low", "points"), [(GPTQ_INT8, 7.63e-6, "-11.0"), (GPTQ_INT4, 1.53e-5, "-10.4")]
)
def test_table_4_gptq_loss_hangs_on_flips_that_are_not_printed(solved: int, low: float, points: str) -> None:
    smallest, largest = mcnemar_bounds(164, FP16, solved)
    assert smallest == pytest.approx(low, rel=1e-2)
    assert largest == pytest.approx(0.15 if solved == GPTQ_INT8 else 0.18, abs=0.005)
    assert mcnemar(30, 48) == pytest.approx(0.054, abs=5e-4)
    assert verdict_without_flips(164, FP16, solved).startswith(
        f"cannot be told from the counts: {points} points"
    )


@pytest.mark.parametrize(("solved", "gained"), [(GPTQ_INT8, 28), (GPTQ_INT4, 25)])
def test_table_4_gptq_loss_is_real_up_to_so_many_gains(solved: int, gained: int) -> None:
    lost = FP16 - solved
    assert mcnemar(gained, gained + lost) < 0.05 < mcnemar(gained + 1, gained + 1 + lost)


def test_a_loss_no_overlap_can_explain_is_real() -> None:
    assert verdict_without_flips(164, FP16, 30).startswith("real: -43.9 points")


@pytest.mark.parametrize(
    ("solved", "low", "high"),
    [(FP16, 54.6, 69.3), (CT2_INT8, 57.1, 71.5), (GPTQ_INT8, 43.6, 58.8), (GPTQ_INT4, 44.2, 59.3)],
)
def test_wilson_intervals_of_table_4(solved: int, low: float, high: float) -> None:
    assert tuple(100 * end for end in wilson(solved, 164)) == pytest.approx((low, high), abs=0.06)


def test_wilson_stays_within_a_share() -> None:
    assert 0 <= wilson(0, 10)[0] < 1e-9 < wilson(0, 10)[1]
    assert wilson(10, 10)[0] < 1 - 1e-9 < wilson(10, 10)[1] <= 1


@pytest.mark.parametrize(
    ("problems", "points"), [(164, (4.9, 6.9, 9.8)), (542, (2.7, 3.8, 5.4)), (842, (2.2, 3.1, 4.3))]
)
def test_what_a_suite_of_a_size_can_show(problems: int, points: tuple[float, ...]) -> None:
    found = [100 * minimum_detectable_difference(problems, share) for share in (0.05, 0.10, 0.20)]
    assert found == pytest.approx(points, abs=0.05)


def test_a_detectable_difference_is_found_as_often_as_promised() -> None:
    """Simulated: 300 suites of 1,000 problems, 10 % of which differ, by the smallest detectable difference."""
    problems, share = 1000, 0.1
    difference = minimum_detectable_difference(problems, share)
    generator = np.random.default_rng(0)
    chances = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    flips = generator.multinomial(problems, chances, size=300)
    found = np.mean([mcnemar(int(gained), int(lost)) < 0.05 for gained, lost, _ in flips])
    assert 0.7 < found < 0.9


def test_flips_are_listed_by_name() -> None:
    comparison = compare({"a": 1, "b": 0, "c": 1, "d": 0}, {"a": 0, "b": 1, "c": 1, "d": 0})
    assert (comparison.gained, comparison.lost) == (("b",), ("a",))
    assert comparison.difference == 0
    assert comparison.p_value == 1


@pytest.mark.parametrize(
    ("gained", "lost", "says"),
    [
        (0, 0, "no difference: all 164 problems have the same results"),
        (4, 0, "the suite is too small to tell: +2.4 points (4 gained, 0 lost, p = 0.12)"),
        (14, 10, "inside noise: +2.4 points (14 gained, 10 lost, p = 0.54)"),
        (2, 20, "real: -11.0 points (2 gained, 20 lost, p = 0.00012)"),
    ],
)
def test_the_verdict_says_it_in_words(gained: int, lost: int, says: str) -> None:
    assert verdict(compare(*results(gained, lost))).startswith(says)


def test_noise_names_what_would_have_been_seen() -> None:
    comparison = compare(*results(14, 10))
    assert comparison.detectable == pytest.approx(minimum_detectable_difference(164, 24 / 164))
    assert verdict(comparison).endswith("164 problems show differences of 8.4 points or more")


def test_sampled_results_are_judged_by_their_interval() -> None:
    tasks = [f"task {number}" for number in range(164)]
    baseline = dict.fromkeys(tasks, 0.5)
    noise = {task: 0.5 + (0.1 if number % 2 else -0.1) for number, task in enumerate(tasks)}
    loss = {task: 0.3 if number % 2 else 0.5 for number, task in enumerate(tasks)}
    assert verdict(compare(baseline, noise)).startswith("inside noise: +0.0 points (95% interval -")
    assert verdict(compare(baseline, loss)).startswith("real: -10.0 points (95% interval -")
    assert verdict(compare(baseline, dict(baseline))).startswith("no difference")
    assert compare(baseline, loss).p_value is None


def test_the_interval_is_paired_and_seeded() -> None:
    """Two runs that differ in nothing but one problem have a narrow interval, whatever their own spread."""
    tasks = {str(number): float(number % 2) for number in range(164)}
    comparison = compare(tasks, tasks | {"0": 1.0}, seed=5)
    assert comparison.interval == compare(tasks, tasks | {"0": 1.0}, seed=5).interval
    assert comparison.interval[0] == 0
    assert comparison.interval[1] < 0.03


def test_results_of_different_problems_are_not_compared() -> None:
    with pytest.raises(UnpairedError, match="differ in 2 problems"):
        compare({"a": 1, "b": 0}, {"a": 1, "c": 0})
    with pytest.raises(UnpairedError):
        compare({}, {})
