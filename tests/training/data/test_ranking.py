"""Which answers make a pair, and with what scores; nothing is run here."""

import itertools
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.responses import response

from pangu_training.data.ranking import (
    NO_PROGRAM,
    SITUATIONS,
    Judged,
    LeftOut,
    Pair,
    RankError,
    Rule,
    Situation,
    normal_form,
    pair_of,
)
from pangu_training.sandbox.execution import Outcome, Result

RULE = Rule()


def judged(
    role: str, outcome: str, program: str = "", passed: int = 0, total: int = 4, **fields: Any
) -> Judged:
    program = program or f"{role} = '{outcome} {passed}'"
    result = Result(outcome=Outcome(outcome), passed_checks=passed, total_checks=total)
    return Judged(response=response("p", role, program, **fields), program=program, result=result)


def teacher(outcome: str, program: str = "", passed: int = 0, **fields: Any) -> Judged:
    return judged("teacher", outcome, program, passed, **fields)


def student(outcome: str, program: str = "", passed: int = 0, **fields: Any) -> Judged:
    return judged("student", outcome, program, passed, **fields)


def no_program(role: str) -> Judged:
    return Judged(response=response("p", role, ""), program="", result=NO_PROGRAM)


def paired(*answers: Judged, rule: Rule = RULE) -> Pair:
    pair = pair_of(answers, rule)
    assert isinstance(pair, Pair), pair
    return pair


def scores(pair: Pair) -> tuple[float, float]:
    return pair.chosen_score, pair.rejected_score


def test_every_outcome_but_a_broken_test_is_one_of_four_situations() -> None:
    assert set(SITUATIONS) == set(Outcome) - {Outcome.BROKEN}
    assert set(SITUATIONS.values()) == set(Situation)


@pytest.mark.parametrize(
    ("outcome", "passed", "flat", "ratio"),
    [
        ("syntax", 0, -1, -1),
        ("error", 0, -0.6, -0.6),
        ("timeout", 3, -0.6, -0.6),
        ("killed", 0, -0.6, -0.6),
        ("failed", 0, -0.3, -0.3),
        ("failed", 2, -0.3, 0.35),
        ("passed", 4, 1, 1),
    ],
)
def test_scores_are_those_of_coderl_and_rltf(outcome: str, passed: int, flat: float, ratio: float) -> None:
    assert RULE.score(student(outcome, passed=passed)) == flat
    assert Rule(partial="ratio").score(student(outcome, passed=passed)) == pytest.approx(ratio)


def test_what_fails_scores_below_what_passes_whatever_was_counted() -> None:
    """Tests that end early, before a line that they do not reach."""
    rule = Rule(partial="ratio")
    assert rule.score(student("failed", passed=4)) < rule.score(student("passed", passed=4))
    assert rule.score(judged("student", "failed", total=0)) == -0.3


def test_the_teachers_best_is_chosen() -> None:
    pair = paired(
        teacher("error", source="a"),
        teacher("passed", source="b"),
        teacher("failed", source="c"),
        student("failed"),
    )
    assert pair.chosen.response.source == "b"
    assert scores(pair) == (1, -0.3)


def test_on_a_tie_the_teacher_is_ranked_higher() -> None:
    assert scores(paired(teacher("timeout"), student("error"))) == (-0.5, -0.6)
    assert scores(paired(teacher("failed", passed=1), student("failed", passed=3))) == pytest.approx(
        (-0.2, -0.3)
    )


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([teacher("failed"), student("error"), student("passed")], LeftOut.STUDENT_BETTER),
        ([student("passed")], LeftOut.NO_TEACHER),
        ([no_program("teacher"), student("syntax")], LeftOut.NO_TEACHER),
        ([teacher("passed"), no_program("student")], LeftOut.NO_STUDENT),
        ([teacher("passed", "x = 1"), student("passed", "# mine\nx  =  1\n")], LeftOut.ALL_THE_SAME),
        ([teacher("passed"), student("error"), student("broken")], LeftOut.BROKEN_TESTS),
    ],
)
def test_why_a_problem_is_left_out(answers: list[Judged], reason: LeftOut) -> None:
    assert pair_of(answers, RULE) is reason


def test_a_program_like_the_chosen_one_is_not_rejected() -> None:
    same = student("passed", "x = 1  # mine", sample=0)
    pair = paired(teacher("passed", "x = 1"), same, student("error", sample=1), rule=Rule(rejected="best"))
    assert pair.rejected.situation is Situation.RUNTIME_ERROR


def test_a_finer_score_finds_the_better_student() -> None:
    answers = teacher("failed", passed=1), student("failed", passed=3)
    assert pair_of(answers, Rule(partial="ratio")) is LeftOut.STUDENT_BETTER


def test_a_teacher_that_does_not_pass_can_be_refused() -> None:
    answers = teacher("failed"), student("error")
    assert pair_of(answers, Rule(require_pass=True)) is LeftOut.NONE_PASSES
    assert scores(paired(*answers)) == (-0.3, -0.6)


STUDENTS = [
    student(outcome, sample=at) for at, outcome in enumerate(["error", "syntax", "failed", "timeout"])
]


def test_the_best_or_the_worst_of_the_student_is_rejected() -> None:
    best = paired(teacher("passed"), *STUDENTS, rule=Rule(rejected="best"))
    worst = paired(teacher("passed"), *STUDENTS, rule=Rule(rejected="worst"))
    assert (best.rejected.situation, worst.rejected.situation) == (
        Situation.PASSES_SOME,
        Situation.DOES_NOT_COMPILE,
    )


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    answers = [teacher("passed", f"x = {n}", sample=n) for n in range(2)] + STUDENTS[:2]
    by_seed: list[tuple[str, str]] = []
    for seed in range(20):
        rule = Rule(seed=seed)
        drawn = {
            (pair.chosen.program, pair.rejected.program)
            for order in itertools.permutations(answers)
            if isinstance(pair := pair_of(order, rule), Pair)
        }
        assert len(drawn) == 1
        by_seed += drawn
    assert len(set(by_seed)) == 4, "each teacher's and each student's"


OUTCOMES = st.sampled_from(["syntax", "error", "failed", "passed"])
ANSWERS = st.lists(
    st.builds(
        judged,
        st.sampled_from(["teacher", "student"]),
        OUTCOMES,
        st.sampled_from(["x = 1", "x = 2", "x =  1", "x = ("]),
        st.integers(0, 4),
    )
)


@given(ANSWERS, st.sampled_from(["flat", "ratio"]), st.sampled_from(["random", "best", "worst"]))
def test_a_pair_always_teaches_something(
    answers: list[Judged], partial: Literal["flat", "ratio"], rejected: Literal["random", "best", "worst"]
) -> None:
    pair = pair_of(answers, Rule(partial=partial, rejected=rejected))
    if isinstance(pair, Pair):
        assert pair.chosen_score > pair.rejected_score
        assert (pair.chosen.response.role, pair.rejected.response.role) == ("teacher", "student")
        assert normal_form(pair.chosen.program) != normal_form(pair.rejected.program)


def test_programs_that_do_not_parse_or_are_too_deep_have_a_form() -> None:
    assert normal_form("x = (\n\n 1") == normal_form("x = ( 1")
    deep = "x = " + "+".join(["1"] * 2000)
    assert normal_form(deep) == normal_form(f"{deep}\n")


@pytest.mark.parametrize("bad", [(1, 2, 3, 3), (0, 1, 2, float("inf")), (0, float("nan"), 1, 2)])
def test_scores_that_do_not_rise_are_refused(bad: tuple[float, float, float, float]) -> None:
    with pytest.raises(RankError, match="four rising numbers"):
        Rule(scores=bad)
    with pytest.raises(RankError, match="not negative"):
        Rule(tie_bonus=-1)
