"""Verdicts of the sandbox on programs for problems, kept in a journal: a program is judged once, whoever wrote it."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pangu_training.extraction import runnable
from pangu_training.line_file import Journal, key_of
from pangu_training.sandbox.execution import Outcome, Policy, Result, run_as_completed
from pangu_training.suite_checks import check_of, sandbox_configuration
from pangu_training.suites import Problem


def verdicts(journal: Path, programs: Sequence[tuple[Problem, str]], policy: Policy) -> list[Result]:
    """How each of `programs` came out, in order; only what `journal` lacks is run.

    Raises:
        SandboxError: programs cannot be confined here.
        LineFileError: another process has the journal, or it is damaged.
    """
    sandbox = sandbox_configuration(policy)
    checks = {problem.task_id: check_of(problem) for problem, _ in programs}
    jobs = [(runnable(problem, program), checks[problem.task_id]) for problem, program in programs]
    keys = [key_of("verdict", program, asdict(check), sandbox) for program, check in jobs]
    with Journal(journal) as done:
        missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in done.rows}
        new = list(missing)
        with contextlib.closing(run_as_completed(list(missing.values()), policy)) as results:
            for at, result in tqdm(results, total=len(new), desc="judging", unit="program", disable=None):
                done.append(new[at], asdict(result))
        return [_result(done.rows[key]) for key in keys]


def _result(row: Mapping[str, Any]) -> Result:
    fields = {name: row[name] for name in Result.__dataclass_fields__}
    return Result(**fields | {"outcome": Outcome(row["outcome"])})
