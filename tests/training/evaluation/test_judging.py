"""The one loop from programs to verdicts, with the real sandbox."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.problems import METHOD, PROBLEM
from support.process import has_ended

from pangu_training.evaluation.extraction import runnable
from pangu_training.evaluation.judging import check_of, judge, policy_of, sandbox_configuration, verdicts
from pangu_training.evaluation.problem import CheckTests, Problem, Suite
from pangu_training.sandbox.execution import DEFAULT_POLICY, Outcome
from pangu_training.stage.line_file import key_of

RIGHT = PROBLEM.canonical_program
WRONG = RIGHT.replace("+ offset", "- offset")
SLOW = "from time import process_time\n\nwhile process_time() < 1:\n    pass\n" + RIGHT
ENDLESS = "while True:\n    pass\n"


def children() -> set[str]:
    """Ids of the processes of this one's threads."""
    return {
        child for task in Path("/proc/self/task").glob("*/children") for child in task.read_text().split()
    }


def with_check(problem: Problem, expected: int) -> Problem:
    return replace(
        problem,
        entry_point="f",
        tests=CheckTests(source=f"def check(candidate):\n    assert candidate() == {expected}\n"),
    )


def test_results_in_any_order_are_matched_to_their_programs() -> None:
    programs = [(PROBLEM, SLOW), (PROBLEM, WRONG), (PROBLEM, RIGHT), (PROBLEM, "def root_sum(:\n")]
    came = list(judge(programs, DEFAULT_POLICY))
    assert [at for at, _ in came] != [0, 1, 2, 3], "the slow one comes later"
    outcomes = {at: result.outcome for at, result in came}
    assert outcomes == {0: Outcome.PASSED, 1: Outcome.FAILED, 2: Outcome.PASSED, 3: Outcome.SYNTAX}


def test_problems_of_one_id_are_judged_by_their_own_tests() -> None:
    programs = [(with_check(PROBLEM, number % 2), "def f():\n    return 1\n") for number in range(4)]
    results = dict(judge(programs, DEFAULT_POLICY))
    assert [results[at].passed_checks for at in range(4)] == [0, 1, 0, 1]


def test_a_program_runs_behind_the_setup_of_its_problem() -> None:
    policy = policy_of(Suite(name="leetcode", problems=(METHOD,), sha256=""), unsafe=False)
    [(_, result)] = judge([(METHOD, METHOD.canonical_program.removeprefix(METHOD.setup))], policy)
    assert result.outcome is Outcome.PASSED


@pytest.mark.parametrize("how", ["break", "raise"])
def test_a_loop_that_is_left_early_leaves_no_process_behind(how: str) -> None:
    before, running = children(), set()

    def leave() -> None:
        for _ in judge([(PROBLEM, RIGHT)] + [(PROBLEM, ENDLESS)] * 3, DEFAULT_POLICY):
            while not (started := children() - before):
                pass
            running.update(started)
            if how == "raise":
                raise KeyboardInterrupt
            break
        assert all(map(has_ended, running)), "when the loop is left, not some time later"

    if how == "raise":
        with pytest.raises(KeyboardInterrupt):
            leave()
    else:
        leave()
    assert running
    assert all(map(has_ended, running))


def test_an_interrupted_journal_goes_on_by_the_keys_that_it_has(tmp_path: Path) -> None:
    journal = tmp_path / "verdicts.jsonl"
    tripled, wrong = (METHOD, "class Solution:\n    triple = lambda self, x: 3 * x[0]\n"), (PROBLEM, WRONG)
    first = verdicts(journal, [tripled], DEFAULT_POLICY)
    [line] = journal.read_text().splitlines()
    made_from = (runnable(*tripled), asdict(check_of(METHOD)), sandbox_configuration(DEFAULT_POLICY))
    assert json.loads(line)["key"] == key_of("verdict", *made_from)
    assert verdicts(journal, [wrong, tripled], DEFAULT_POLICY)[1:] == first
    before, new = journal.read_text().splitlines()
    assert before == line
    assert json.loads(new)["outcome"] == "failed"
