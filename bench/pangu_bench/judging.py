"""Verdicts on answers, made by the sandbox; each is a row as soon as it is there. The gold solutions' too."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pangu_bench.rows import GenerationRow, RowFile, VerdictRow
from pangu_training.evaluation.extraction import runnable
from pangu_training.evaluation.judging import check_of, sandbox_configuration
from pangu_training.evaluation.problem import Problem, Suite
from pangu_training.evaluation.styles import style_for
from pangu_training.sandbox.execution import Outcome, Policy, Result, run_as_completed

GOLD = "gold"


class Job(NamedTuple):
    """A program that is to be judged."""

    problem: Problem
    style: str
    sample: int
    program: str


def judge(rows: RowFile, problems: Iterable[Problem], policy: Policy) -> None:
    """Append a verdict for every answer to `problems` that has none."""
    by_task = {problem.task_id: problem for problem in problems}
    jobs = []
    for row in rows.of(GenerationRow):
        if problem := by_task.get(row.task_id):
            program = style_for(problem, row.style).program(problem, row.answer)
            jobs.append(Job(problem, row.style, row.sample, runnable(problem, program)))
    _judge(rows, jobs, policy, "judging")


def gold_verdicts(
    folder: Path, suite: Suite, problems: Sequence[Problem], policy: Policy
) -> dict[str, VerdictRow]:
    """The verdicts on the suite's own solutions, by task; kept in `folder` under the suite's hash."""
    configuration = {"suite": suite.name, "sha256": suite.sha256, "sandbox": sandbox_configuration(policy)}
    with RowFile(folder / f"gold.{suite.name}.{suite.sha256[:12]}.jsonl", configuration) as rows:
        solved = [
            problem for problem in problems if problem.canonical_program
        ]  # own problems may come without
        jobs = [Job(problem, GOLD, 0, problem.canonical_program) for problem in solved]
        _judge(rows, jobs, policy, "judging gold")
        verdicts = {row.task_id: row for row in rows.of(VerdictRow)}
    return {problem.task_id: verdicts[problem.task_id] for problem in solved}


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
