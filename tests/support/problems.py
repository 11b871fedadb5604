"""Problems of our own in the suites' forms."""

from typing import Any

from pangu_training.evaluation.extraction import runnable
from pangu_training.evaluation.problem import CheckTests, Problem

PROMPT = '''from math import sqrt


def halve(x):
    return x / 2


def root_sum(numbers: list, offset: float) -> float:
    """ Sum of the square roots of numbers, plus offset.
    Lines end with "\\n".
    >>> root_sum([4, 9], 1)
    6.0
    """
'''
BODY = "    return sum(sqrt(x) for x in numbers) + offset\n"
CHECK = "def check(candidate):\n    assert candidate([4, 9], 1) == 6.0\n    assert candidate([], 2) == 2\n"
PROBLEM = Problem(
    suite="humaneval",
    task_id="Own/0",
    prompt=PROMPT,
    entry_point="root_sum",
    canonical_program=PROMPT + BODY,
    tests=CheckTests(source=CHECK),
)
HOLE = Problem(
    suite="humaneval-infilling",
    task_id="Own/0/L0",
    prompt="def double(x):\n",
    suffix="    return y\n",
    entry_point="double",
    canonical_program="def double(x):\n    y = 2 * x\n    return y\n",
    tests=CheckTests(source="def check(candidate):\n    assert candidate(2) == 4\n"),
)
METHOD = Problem(
    suite="leetcode",
    task_id="own-method",
    prompt='class Solution:\n    def triple(self, x: List[int]) -> int:\n        """\n        Three x.\n        """\n',
    entry_point="Solution().triple",
    canonical_program="from typing import *\nclass Solution:\n    def triple(self, x: List[int]) -> int:\n"
    "        return 3 * x[0]\n",
    tests=CheckTests(source="def check(candidate):\n    assert candidate([2]) == 6\n"),
    setup="from typing import *\n",
)
HUMAN_EVAL_ROW = {
    "task_id": "Own/0",
    "prompt": PROMPT,
    "entry_point": "root_sum",
    "canonical_solution": BODY,
    "test": CHECK,
}
LEET_CODE_ROW: dict[str, Any] = {
    "task_id": "own-method",
    "prompt": "from typing import *",
    "query": 'Three x, as in """a\\b""".\n\nExample\n'
    "Please complete the following python code precisely:\n```python\n...\n```",
    "completion": "class Solution:\n    def triple(self, x: List[int]) -> int:\n        return 3 * x[0]\n",
    "entry_point": "Solution().triple",
    "test": "def check(candidate):\n    assert candidate(x = [2]) == 6\n",
    "meta": {
        "question_id": 2400,
        "difficulty": "Meidum",
        "lang_code": "class Solution:\n    def triple(self, x: List[int]) -> int:",
    },
}


def solves(problem: Problem, program: str) -> bool:
    """Whether `program` passes. For the programs written in these tests only: nothing is shut in."""
    assert isinstance(problem.tests, CheckTests)
    namespace: dict[str, object] = {}
    try:
        exec(
            f"{runnable(problem, program)}\n{problem.tests.source}\ncheck({problem.entry_point})\n", namespace
        )
    except Exception:
        return False
    return True
