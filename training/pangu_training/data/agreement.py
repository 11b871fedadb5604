"""Tests that a model wrote: which of its asserts are taken, and which of those its own programs bear out.

**Taken** is an assert of one call of the function under test, compared with a value that is written out:
`f(…) == value`, `value == f(…)`, `f(…) is True`, `abs(f(…) - value) < tolerance`, also with a call of `HELPERS` around
anything. Arguments and values are constants, signs, arithmetic, and lists, tuples, sets and dicts of them. Everything
else (variables, attributes, comprehensions, asserts that compare the function with itself) is left.

**Borne out** are asserts by the dual agreement of CodeT (Chen et al. 2022, arXiv 2207.10397, section 2.3). Programs
that hold exactly the same asserts are a consensus set. Its score is the number of its programs times the number of
those asserts. The highest score wins; at a tie, the set of more programs. Programs of the same text count each.
"""

import ast
import builtins
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pangu_training.evaluation.extraction import parse

HELPERS = frozenset(("abs", "dict", "float", "len", "list", "round", "set", "sorted", "str", "sum", "tuple"))
VALUES = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp, ast.Call, ast.keyword)
NODES = (ast.Assert, ast.Compare, ast.Name, ast.expr_context, ast.unaryop, ast.operator, ast.cmpop, *VALUES)
LONGEST_ASSERT_LINES = 20
CALLED = re.compile(r"(?<![\w.])([a-z_]\w*)\(")  # not O(n)
NAMED = re.compile(r"(?:(?<=function )|(?<=named )|(?<=called ))([`'\"]?)([A-Za-z_]\w*)")


class Consensus(NamedTuple):
    """The programs that agree, and the asserts that all of them hold; both as places."""

    programs: tuple[int, ...]
    asserts: tuple[int, ...]


def asserts_in(answer: str) -> list[ast.Assert]:
    """The assert statements in an answer, in prose, fences or functions, that parse by themselves."""
    found, lines = [], answer.splitlines()
    for at, line in enumerate(lines):
        start = re.search(r"\bassert\b.*", line)
        if not start:
            continue
        for end in range(at + 1, min(at + LONGEST_ASSERT_LINES, len(lines)) + 1):
            tree = parse("\n".join([start[0].rstrip("` "), *lines[at + 1 : end]]))
            if tree and len(tree.body) == 1 and isinstance(tree.body[0], ast.Assert):
                found.append(tree.body[0])
                break
    return found


def function_under_test(statement: ast.Assert) -> str | None:
    """The function's name where the assert is one that is taken."""
    test = statement.test
    calls = [node for node in ast.walk(test) if isinstance(node, ast.Call)]
    names = [call.func.id for call in calls if isinstance(call.func, ast.Name)]
    tested = [name for name in names if name not in HELPERS]
    if (
        not isinstance(test, ast.Compare)
        or len(tested) != 1
        or sum(isinstance(node, ast.Name) for node in ast.walk(test)) != len(calls)  # they call, no variable
        or not all(isinstance(node, NODES) for node in ast.walk(test))
    ):
        return None
    match test.ops:
        case [ast.Eq()] | [ast.Is()]:
            return tested[0]
        case [ast.Lt()] | [ast.LtE()] if (
            isinstance(test.left, ast.Call) and ast.unparse(test.left.func) == "abs"
        ):
            return tested[0]
    return None


def entry_point(asserts: Iterable[ast.Assert], task: str) -> str | None:
    """The function that most of the asserts test; one that the task names, where it names any."""
    stated = names_in(task)
    tested = [name for name in map(function_under_test, asserts) if name and (name in stated or not stated)]
    return max(tested, key=tested.count, default=None)


def names_in(task: str) -> set[str]:
    """Functions that a task names: `name(`; after `function`, `named`, `called` a name that is quoted or has a `_`."""
    named = {name for quote, name in NAMED.findall(task) if quote or "_" in name}
    return (named | set(CALLED.findall(task))) - set(dir(builtins))


def of_candidate(statement: ast.Assert, function: str) -> str:
    """The assert as a line that tests `candidate`, without its message."""

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.Name:
            return ast.Name("candidate", node.ctx) if node.id == function else node

    return ast.unparse(ast.Assert(test=Rename().visit(statement.test)))


def check_source(asserts: Iterable[str]) -> str:
    """The function `check(candidate)` of these lines."""
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in asserts)


def consensus(held: Sequence[frozenset[int]]) -> Consensus:
    """The winning set; `held` has the places of the asserts that each program holds."""
    sets: dict[frozenset[int], list[int]] = {}
    for program, asserts in enumerate(held):
        sets.setdefault(asserts, []).append(program)
    best = max(
        sets, key=lambda asserts: (len(asserts) * len(sets[asserts]), len(sets[asserts])), default=None
    )
    if best is None:
        return Consensus((), ())
    return Consensus(tuple(sets[best]), tuple(sorted(best)))
