"""Verdicts on answers, made by the sandbox; each is a row as soon as it is there. The gold solutions' too."""

import contextlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pangu_bench.prompts import style_for
from pangu_bench.rows import GenerationRow, RowFile, VerdictRow
from pangu_bench.suites import InputTests, Problem, Suite
from pangu_training.sandbox import checks
from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome, Policy, Result, run_as_completed
from pangu_training.sandbox.tiers import tier

GOLD = "gold"
LEETCODE_PACKAGES = (
    "numpy",
    "sortedcontainers",
)  # what LeetCode's own machines have; some solutions import them


class Job(NamedTuple):
    """A program that is to be judged."""

    problem: Problem
    style: str
    sample: int
    program: str


def check_of(problem: Problem) -> Check:
    """What the sandbox needs to judge programs for `problem`, which can be judged."""
    tests = problem.tests
    assert tests is not None
    if isinstance(tests, InputTests):
        row = {"prompt": problem.canonical_program, "canonical_solution": "", "atol": tests.atol}
        inputs = {"base_input": tests.base_inputs, "plus_input": tests.plus_inputs}
        return checks.human_eval_plus({**row, **inputs, "entry_point": problem.entry_point})
    if problem.suite == "leetcode":
        return Check(entry_point=problem.entry_point, test=tests.source, definitions=problem.setup)
    # The tests use the prompt's helpers; around a hole the prompt alone is no program.
    row = {"prompt": problem.canonical_program, "test": tests.source, "entry_point": problem.entry_point}
    return checks.human_eval(row)


def policy_of(suite: Suite, *, unsafe: bool) -> Policy:
    """What answers to `suite` may use."""
    packages = LEETCODE_PACKAGES if suite.name == "leetcode" else ()
    return Policy(packages=tuple(name for name in packages if importlib.util.find_spec(name)), unsafe=unsafe)


def sandbox_configuration(policy: Policy) -> dict[str, object]:
    """What shapes a verdict besides the program.

    Raises:
        SandboxError: programs cannot be confined here.
    """
    return {"tier": tier(unsafe=policy.unsafe).name, **asdict(policy)}


def judge(rows: RowFile, problems: Iterable[Problem], policy: Policy) -> None:
    """Append a verdict for every answer to `problems` that has none."""
    by_task = {problem.task_id: problem for problem in problems}
    jobs = []
    for row in rows.of(GenerationRow):
        if problem := by_task.get(row.task_id):
            program = style_for(problem, row.style).program(problem, row.answer)
            jobs.append(Job(problem, row.style, row.sample, program))
    _judge(rows, jobs, policy, "judging")


def gold_verdicts(
    folder: Path, suite: Suite, problems: Sequence[Problem], policy: Policy
) -> dict[str, VerdictRow]:
    """The verdicts on the suite's own solutions, by task; kept in `folder` under the suite's hash."""
    configuration = {"suite": suite.name, "sha256": suite.sha256, "sandbox": sandbox_configuration(policy)}
    with RowFile(folder / f"gold.{suite.name}.{suite.sha256[:12]}.jsonl", configuration) as rows:
        jobs = [Job(problem, GOLD, 0, problem.canonical_program) for problem in problems]
        _judge(rows, jobs, policy, "judging gold")
        verdicts = {row.task_id: row for row in rows.of(VerdictRow)}
    return {problem.task_id: verdicts[problem.task_id] for problem in problems}


def _judge(rows: RowFile, jobs: Iterable[Job], policy: Policy, description: str) -> None:
    jobs = [
        job
        for job in jobs
        if not rows.has(VerdictRow, job.problem.suite, job.style, job.problem.task_id, job.sample)
    ]
    checks_by_task = {job.problem.task_id: check_of(job.problem) for job in jobs}
    with contextlib.closing(
        run_as_completed([(job.program, checks_by_task[job.problem.task_id]) for job in jobs], policy)
    ) as done:
        for at, result in tqdm(done, total=len(jobs), desc=description, unit="program", disable=None):
            rows.append(_verdict(jobs[at], result))


def _verdict(job: Job, result: Result) -> VerdictRow:
    return VerdictRow(
        suite=job.problem.suite,
        style=job.style,
        task_id=job.problem.task_id,
        sample=job.sample,
        passed=result.outcome is Outcome.PASSED,
        outcome=result.outcome,
        detail=result.reason,
        program=job.program,
        cpu_seconds=result.cpu_seconds,
    )
