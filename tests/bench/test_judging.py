"""From a problem of each suite's form to a verdict."""

from pathlib import Path

import pytest
from support.problems import HOLE, METHOD, PROBLEM

from pangu_bench.judging import gold_verdicts
from pangu_bench.rows import VerdictRow
from pangu_training.evaluation.judging import check_of, policy_of
from pangu_training.evaluation.problem import InputTests, Problem, Suite
from pangu_training.sandbox.execution import Outcome, run

INPUTS = Problem(
    suite="humaneval+",
    task_id="Own/3",
    prompt='def half(x):\n    """ Half of x """\n',
    entry_point="half",
    canonical_program='def half(x):\n    """ Half of x """\n    return x / 2\n',
    tests=InputTests(base_inputs=([4],), plus_inputs=([0.2], [-3]), atol=0),
)


@pytest.mark.parametrize(
    ("problem", "right_part", "wrong_part"),
    [
        (PROBLEM, "+ offset", "- offset"),
        (HOLE, "2 * x", "3 * x"),
        (METHOD, "3 * x", "2 * x"),
        (INPUTS, "x / 2", "x / 2 + 0.1"),
    ],
    ids=lambda value: getattr(value, "suite", ""),
)
def test_the_right_program_passes_and_a_wrong_one_does_not(
    problem: Problem, right_part: str, wrong_part: str
) -> None:
    policy = policy_of(Suite(name=problem.suite, problems=(problem,), sha256=""), unsafe=False)
    check, right = check_of(problem), problem.canonical_program
    assert run(right, check, policy).outcome is Outcome.PASSED
    wrong = right.replace(right_part, wrong_part)
    assert wrong != right
    assert run(wrong, check, policy).outcome is not Outcome.PASSED


def test_gold_is_judged_once_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(name="humaneval", problems=(PROBLEM,), sha256="0" * 64)
    policy = policy_of(suite, unsafe=False)
    first = gold_verdicts(tmp_path, suite, suite.problems, policy)
    assert isinstance(first["Own/0"], VerdictRow)
    assert first["Own/0"].passed
    monkeypatch.setattr("pangu_training.sandbox.execution.run", None)  # nothing to run
    assert gold_verdicts(tmp_path, suite, suite.problems, policy) == first
