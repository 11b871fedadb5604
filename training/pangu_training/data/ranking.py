"""Which two answers to a problem are trained on, and with what scores: RRTF's second stage (arXiv 2307.14936, 3.1).

A program is in one of four situations, each scored above the one before: it does not compile, it ends in a runtime
error, it passes some tests, it passes all. A problem gives one pair: the teachers' best program, and one of the
student's. On a tie the teacher is ranked higher; a problem where the student is better is left out.

The paper gives no scores, and does not say which of several answers it takes. The scores here are CodeRL's
(arXiv 2207.01780); in proportion to the tests passed, RLTF's (arXiv 2307.04349). The rest is this project's. All
functions are pure, and nothing depends on the order of the answers.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import pairwise
from math import isfinite
from typing import Literal

from pangu_training.data.ranked import Answer, RankedRow
from pangu_training.data.responses import STUDENT, TEACHER, Response
from pangu_training.evaluation.extraction import parse
from pangu_training.evaluation.words import ProblemRow
from pangu_training.sandbox.execution import Outcome, Result
from pangu_training.stage.errors import PanguError
from pangu_training.stage.line_file import key_of
from pangu_training.stage.options import option


class RankError(PanguError):
    """Nothing can be ranked as asked."""


class Situation(IntEnum):
    """How far a program gets, from the worst to the best."""

    DOES_NOT_COMPILE = 0
    RUNTIME_ERROR = 1
    PASSES_SOME = 2  # or none: it runs, and some test does not hold
    PASSES_ALL = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


# Without `broken`, which is the test's fault.
SITUATIONS: Mapping[Outcome, Situation] = {
    Outcome.SYNTAX: Situation.DOES_NOT_COMPILE,
    Outcome.ERROR: Situation.RUNTIME_ERROR,
    Outcome.TIMEOUT: Situation.RUNTIME_ERROR,
    Outcome.KILLED: Situation.RUNTIME_ERROR,
    Outcome.FAILED: Situation.PASSES_SOME,
    Outcome.PASSED: Situation.PASSES_ALL,
}
NO_PROGRAM = Result(outcome=Outcome.SYNTAX, reason="the answer holds no program")


class LeftOut(StrEnum):
    """Why a problem gives no pair."""

    NO_TESTS = "no tests"
    BROKEN_TESTS = "tests that cannot run"
    NO_TEACHER = "no teacher's program"
    NO_STUDENT = "no student's program"
    NONE_PASSES = "no teacher's program passes"
    STUDENT_BETTER = "the student is better"
    ALL_THE_SAME = "the student's programs are the teacher's"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A response, the program in it (empty where there is none), and how that came out."""

    response: Response
    program: str
    result: Result

    @property
    def situation(self) -> Situation:
        """Of the four."""
        return SITUATIONS[self.result.outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How answers are scored and chosen."""

    # Of the situations, rising.
    scores: tuple[float, float, float, float] = option(
        "of a program that does not compile, ends in a runtime error, passes some tests, passes all "
        "(default: -1 -0.6 -0.3 1, CodeRL's)",
        (-1.0, -0.6, -0.3, 1.0),
        nargs=4,
        metavar="SCORE",
        group="scores",
    )
    partial: Literal["flat", "ratio"] = option(
        "ratio: in proportion to the tests passed, as in RLTF", "flat", group="scores"
    )
    tie_bonus: float = option("a teacher's on a tie", 0.1, group="scores")
    rejected: Literal["random", "best", "worst"] = option(
        "which of the student's programs", "random", group="pairs"
    )
    require_pass: bool = option("choose only programs that pass all tests", False, group="pairs")
    seed: int = option("of the draws", 0, group="pairs")

    def __post_init__(self) -> None:
        """`RankError` says what does not go."""
        rising = all(low < high for low, high in pairwise(self.scores))
        if not rising or not all(map(isfinite, self.scores)):
            raise RankError(
                f"--scores {' '.join(f'{score:g}' for score in self.scores)}: give four rising numbers"
            )
        if not 0 <= self.tie_bonus < float("inf"):
            raise RankError(f"--tie-bonus {self.tie_bonus:g}: give a number that is not negative")

    def score(self, judged: Judged) -> float:
        """The score of a program, without a tie's bonus."""
        some, whole = self.scores[Situation.PASSES_SOME], self.scores[Situation.PASSES_ALL]
        if self.partial == "flat" or judged.situation is not Situation.PASSES_SOME:
            return self.scores[judged.situation]
        passed = judged.result.passed_checks
        # Tests that end early can have counted only what held: one at least did not.
        return some + (whole - some) * passed / max(judged.result.total_checks, passed + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What a problem teaches; the chosen score is with a tie's bonus."""

    chosen: Judged
    rejected: Judged
    chosen_score: float
    rejected_score: float

    def row(self, problem: ProblemRow) -> RankedRow:
        """As it is trained on."""
        return RankedRow(
            id=problem.id,
            prompt=problem.prompt,
            chosen=_answer(self.chosen, self.chosen_score),
            rejected=_answer(self.rejected, self.rejected_score),
        )


def pair_of(answers: Sequence[Judged], rule: Rule) -> Pair | LeftOut:
    """The pair of one problem's answers, or why there is none.

    Of equally good teachers' programs one is drawn. What the student does better at its best, it is not to unlearn:
    such a problem is left out. Which of its programs is rejected is the rule's choice, among those that differ from
    the chosen one in more than layout and comments.
    """
    if any(answer.result.outcome is Outcome.BROKEN for answer in answers):
        return LeftOut.BROKEN_TESTS
    teachers, students = (
        [answer for answer in answers if answer.response.role == role and answer.program]
        for role in (TEACHER, STUDENT)
    )
    if not teachers:
        return LeftOut.NO_TEACHER
    if not students:
        return LeftOut.NO_STUDENT
    chosen = _pick(teachers, rule, best=1)
    score = rule.score(chosen)
    if rule.require_pass and chosen.situation is not Situation.PASSES_ALL:
        return LeftOut.NONE_PASSES
    if score < max(map(rule.score, students)):
        return LeftOut.STUDENT_BETTER
    form = normal_form(chosen.program)
    others = [student for student in students if normal_form(student.program) != form]
    if not others:
        return LeftOut.ALL_THE_SAME
    rejected = _pick(others, rule, best={"best": 1, "random": 0, "worst": -1}[rule.rejected])
    below = rule.score(rejected)
    if below == score:
        score += rule.tie_bonus
    return Pair(chosen=chosen, rejected=rejected, chosen_score=score, rejected_score=below)


def normal_form(program: str) -> str:
    """Equal for programs that differ in layout and comments only."""
    tree = parse(program)
    if tree is not None:
        try:
            return ast.dump(tree)
        except RecursionError:  # as deep as only a machine writes
            pass
    return " ".join(program.split())


def _pick(answers: Iterable[Judged], rule: Rule, *, best: int) -> Judged:
    """The best (1) or the worst (-1) of `answers`, drawn among equals; drawn among all (0)."""
    return min(
        answers,
        key=lambda answer: (-best * rule.score(answer), key_of("draw", rule.seed, answer.response.key)),
    )


def _answer(judged: Judged, score: float) -> Answer:
    response, result = judged.response, judged.result
    details = {
        "outcome": result.outcome,
        "passed_checks": result.passed_checks,
        "total_checks": result.total_checks,
        "model": response.model,
        "temperature": response.temperature,
        "sample": response.sample,
    }
    return Answer(text=judged.program, score=score, source=response.source, details=details)
