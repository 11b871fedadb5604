"""Checks: what a program has to fulfil, and how the rows of known data sets become one.

A check is Python: a function `check(candidate)` with asserts, which the judge counts. Its `definitions` run
before it in the judge, so tests can use the problem's own helpers; classes defined there (`ListNode`) cross
between judge and program.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """A problem's tests.

    Arguments reach the program as copies: a test sees what a function returns, never what it did to its
    arguments. A result that is not plain data equals nothing.
    """

    entry_point: str  # an expression in the program: "two_sum", "Solution().twoSum"
    test: str  # defines check(candidate)
    definitions: str = ""  # what the test uses: imports, helpers, record classes

    @cached_property
    def records(self) -> list[str]:
        """Names of the classes whose instances cross by their attributes."""
        try:
            tree = ast.parse(self.definitions)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []  # the judge says that the check is broken
        return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def human_eval(row: Mapping[str, Any]) -> Check:
    """Of a HumanEval row: prompt, test, entry_point.

    The tests also use what the prompt defines, and HumanEval/33 calls the program by its name.
    """
    name = row["entry_point"]
    by_name = f"def check(candidate):\n    global {name}\n    {name} = candidate\n    _check(candidate)\n"
    test = f"{row['test']}\n_check = check\n{by_name}"
    return Check(entry_point=name, test=test, definitions=row["prompt"])


def leetcode(row: Mapping[str, Any]) -> Check:
    """Of a LeetCodeDataset row (v0.1, v0.2): prompt, test, entry_point."""
    return Check(entry_point=row["entry_point"], test=row["test"], definitions=row["prompt"])


def human_eval_plus(row: Mapping[str, Any]) -> Check:
    """Of a HumanEval+ row in EvalPlus's plain format: base and plus inputs, a reference solution, a tolerance.

    Compares as EvalPlus does. Expected values are computed by the reference solution in the judge, and are
    nowhere else. HumanEval/32 has many right answers; its own polynomial judges them.
    """
    special = {"find_zero": "abs(poly(*arguments, result)) <= tolerance"}
    rule = special.get(row["entry_point"], "same(result, reference(*copy.deepcopy(arguments)), tolerance)")
    inputs = [*row["base_input"], *row["plus_input"]]
    return Check(
        entry_point=row["entry_point"],
        definitions=row["prompt"] + row["canonical_solution"] + f"\nreference = {row['entry_point']}\n",
        test=_PLUS_TEST.format(inputs=inputs, tolerance=row["atol"], rule=rule),
    )


_PLUS_TEST = """
import copy
import math

inf, nan = math.inf, math.nan

def floats(value):
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)

def close(result, expected, tolerance):
    if isinstance(expected, (list, tuple)):
        return len(result) == len(expected) and all(map(close, result, expected, [tolerance] * len(expected)))
    if math.isinf(expected) or math.isinf(result):
        return result == expected
    return abs(result - expected) <= tolerance + 1e-7 * abs(expected)

def same(result, expected, tolerance):
    if result == expected:
        return True
    if tolerance == 0 and floats(expected):
        tolerance = 1e-6
    return tolerance != 0 and type(result) is type(expected) and close(result, expected, tolerance)

def check(candidate):
    tolerance = {tolerance!r}
    for arguments in {inputs!r}:
        result = candidate(*copy.deepcopy(arguments))
        assert {rule}
"""
