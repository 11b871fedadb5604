"""Verdicts on answers, made by the sandbox; each is a row as soon as it is there. The gold solutions' too."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pangu_bench.rows import GenerationRow, RowFile, VerdictRow
from pangu_training.evaluation import judging
from pangu_training.evaluation.extraction import runnable
from pangu_training.evaluation.judging import sandbox_configuration
from pangu_training.evaluation.problem import Problem, Suite
from pangu_training.evaluation.styles import style_for
from pangu_training.sandbox.execution import Outcome, Policy, Result

GOLD = "gold"


class Job(NamedTuple):
    """A program that is to be judged, without its problem's setup."""

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
            jobs.append(Job(problem, row.style, row.sample, program))
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
        jobs = [
            Job(problem, GOLD, 0, problem.canonical_program.removeprefix(problem.setup)) for problem in solved
        ]
        _judge(rows, jobs, policy, "judging gold")
        verdicts = {row.task_id: row for row in rows.of(VerdictRow)}
    return {problem.task_id: verdicts[problem.task_id] for problem in solved}


def _judge(rows: RowFile, jobs: Iterable[Job], policy: Policy, description: str) -> None:
    jobs = [
        job
        for job in jobs
        if not rows.has(VerdictRow, job.problem.suite, job.style, job.problem.task_id, job.sample)
    ]
    programs = [(job.problem, job.program) for job in jobs]
    for at, result in judging.judge(programs, policy, description=description):
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
        program=runnable(job.problem, job.program),
        cpu_seconds=result.cpu_seconds,
    )
