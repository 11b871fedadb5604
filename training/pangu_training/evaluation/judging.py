"""The judge: programs for a suite's problems, run by the sandbox against the problems' tests."""

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pangu_training.evaluation.extraction import runnable
from pangu_training.evaluation.problem import InputTests, Problem, Suite
from pangu_training.sandbox import checks
from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome, Policy, Result, run_as_completed
from pangu_training.sandbox.tiers import tier
from pangu_training.stage.line_file import Journal, key_of

LEETCODE_PACKAGES = (
    "numpy",
    "sortedcontainers",
)  # what LeetCode's own machines have; some solutions import them


def check_of(problem: Problem) -> Check:
    """What the sandbox needs to judge programs for `problem`, which can be judged."""
    tests = problem.tests
    assert tests is not None
    if isinstance(tests, InputTests):
        row = {"prompt": problem.canonical_program, "canonical_solution": "", "atol": tests.atol}
        inputs = {"base_input": tests.base_inputs, "plus_input": tests.plus_inputs}
        return checks.human_eval_plus({**row, **inputs, "entry_point": problem.entry_point})
    if problem.suite in ("leetcode", "problems"):
        return Check(entry_point=problem.entry_point, test=tests.source, definitions=problem.setup)
    # The tests use the prompt's helpers; around a hole the prompt alone is not a program.
    row = {"prompt": problem.canonical_program, "test": tests.source, "entry_point": problem.entry_point}
    return checks.human_eval(row)


def policy_of(suite: Suite, *, unsafe: bool) -> Policy:
    """What answers to `suite` may use."""
    packages = LEETCODE_PACKAGES if suite.name.startswith(("leetcode", "problems")) else ()
    return Policy(packages=tuple(name for name in packages if importlib.util.find_spec(name)), unsafe=unsafe)


def sandbox_configuration(policy: Policy) -> dict[str, object]:
    """What shapes a verdict besides the program.

    Raises:
        SandboxError: programs cannot be confined here.
    """
    return {"tier": tier(unsafe=policy.unsafe).name, **asdict(policy)}


def judge(
    programs: Sequence[tuple[Problem, str]],
    policy: Policy,
    *,
    description: str = "judging",
    leave: bool = True,
) -> Iterator[tuple[int, Result]]:
    """Run each program, which comes without its problem's setup: its place in `programs` and its result, as they come.

    Iterate over it directly: then a loop that is left early, by Ctrl-C too, leaves no process behind. `description`
    names the bar, which stays on the screen if `leave`.

    Raises:
        SandboxError: programs cannot be confined here.
    """
    return _results(_jobs(programs), policy, description, leave)


def verdicts(journal: Path, programs: Sequence[tuple[Problem, str]], policy: Policy) -> list[Result]:
    """How each of `programs` came out, in order; only what `journal` lacks is run.

    Raises:
        SandboxError: programs cannot be confined here.
        LineFileError: another process has the journal, or it is damaged.
    """
    sandbox = sandbox_configuration(policy)
    jobs = _jobs(programs)
    keys = [key_of("verdict", program, asdict(check), sandbox) for program, check in jobs]
    with Journal(journal) as done:
        missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in done.rows}
        new = list(missing)
        for at, result in _results(list(missing.values()), policy):
            done.append(new[at], asdict(result))
        return [_result(done.rows[key]) for key in keys]


def _jobs(programs: Iterable[tuple[Problem, str]]) -> list[tuple[str, Check]]:
    """What the sandbox runs. A check is made once for each problem, the object: two with one id may differ in tests."""
    checks: dict[int, Check] = {}
    jobs = []
    for problem, program in programs:
        if id(problem) not in checks:
            checks[id(problem)] = check_of(problem)
        jobs.append((runnable(problem, program), checks[id(problem)]))
    return jobs


def _results(
    jobs: Sequence[tuple[str, Check]], policy: Policy, description: str = "judging", leave: bool = True
) -> Iterator[tuple[int, Result]]:
    with contextlib.closing(run_as_completed(jobs, policy)) as results:
        yield from tqdm(results, desc=description, total=len(jobs), leave=leave, unit="program", disable=None)


def _result(row: Mapping[str, Any]) -> Result:
    fields = {name: row[name] for name in Result.__dataclass_fields__}
    return Result(**fields | {"outcome": Outcome(row["outcome"])})
