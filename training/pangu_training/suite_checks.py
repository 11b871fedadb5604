"""How programs for a suite's problem are judged: its tests as the sandbox's check, and what a program may use."""

import importlib.util
from dataclasses import asdict

from pangu_training.sandbox import checks
from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Policy
from pangu_training.sandbox.tiers import tier
from pangu_training.suites import InputTests, Problem, Suite

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
    # The tests use the prompt's helpers; around a hole the prompt alone is no program.
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
