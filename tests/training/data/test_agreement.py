"""Which asserts of a model are taken, and on which its programs agree."""

import ast
from typing import Any

import pytest

from pangu_training.data.agreement import (
    Consensus,
    asserts_in,
    consensus,
    entry_point,
    function_under_test,
    names_in,
    of_candidate,
)


def assertion(line: str) -> ast.Assert:
    [statement] = ast.parse(line).body
    assert isinstance(statement, ast.Assert)
    return statement


@pytest.mark.parametrize(
    "line",
    [
        "assert f(1, -2, key=[1, (2, 3)]) == {'a': {1.5}}",
        "assert [1] * 3 == f('x' * 100, 10 ** 6)",
        "assert f(None) is True, 'a message'",
        "assert abs(f(1) - 0.1) < 1e-9",
        "assert sorted(f(set())) == list((1, 2))",
    ],
)
def test_an_assert_of_one_call_and_written_values_is_taken(line: str) -> None:
    assert function_under_test(assertion(line)) == "f"


@pytest.mark.parametrize(
    "line",
    [
        "assert f(1)",
        "assert f(1) != 2",
        "assert f(1) == x",
        "assert f(x) == 1",
        "assert f(1) == f(1)",
        "assert f(g(1)) == 1",
        "assert f == 1",
        "assert 1 == 1",
        "assert f(1) == 1 == 1",
        "assert f(3) < 10",
        "assert f(1).real == 1",
        "assert Solution().f(1) == 1",
        "assert f([i for i in 'ab']) == 1",
        "assert f(lambda: 1) == 1",
        "assert f(*[1]) == 1",
        "assert f(f'{1}') == '1'",
        "assert __import__('os').system('true') == 0",
        "assert len([1]) == 1",
    ],
)
def test_any_other_assert_is_left(line: str) -> None:
    assert function_under_test(assertion(line)) is None


def test_asserts_are_found_wherever_they_stand() -> None:
    answer = """Here are the tests; I assert that they are right.
- `assert f(1) == 1`
1. assert f(2) == 2  # easy
```python
def test():
    assert f([
        3,
    ]) == 3, "three"
    assert f(4 == 4
assert f(5) == 5"""
    found = [ast.unparse(statement) for statement in asserts_in(answer)]
    assert found == [
        "assert f(1) == 1",
        "assert f(2) == 2",
        "assert f([3]) == 3, 'three'",
        "assert f(5) == 5",
    ]
    assert asserts_in("assert " * 1000) == []


def test_the_function_is_the_one_that_the_task_names_or_most_asserts_call() -> None:
    asserts = [assertion(line) for line in ("assert g(1) == 1", "assert g(2) == 2", "assert f(3) == 3")]
    assert entry_point(asserts, "Write a function.") == "g"
    assert entry_point(asserts, "Write a function f(x).") == "f"
    assert entry_point(asserts, "Write a function h(x).") is None, "answers will be called h"
    assert entry_point([], "Write a function.") is None


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("Write a function `count`.", {"count"}),
        ("Write count(x) and `sum_of(x)`.", {"count", "sum_of"}),
        ("A function named count_all, called 'count' below.", {"count_all", "count"}),
        ("Write a function that is called twice, in O(n), without max() or math.gcd().", set()),
        ("Count the words (of a text), given as `words`.", set()),
    ],
)
def test_the_functions_that_a_task_names(task: str, names: set[str]) -> None:
    assert names_in(task) == names


def test_an_assert_is_made_one_of_the_candidate() -> None:
    assert (
        of_candidate(assertion("assert abs(f(1) - 2) < 3, 'far'"), "f") == "assert abs(candidate(1) - 2) < 3"
    )


@pytest.mark.parametrize(
    ("held", "winner"),
    [
        # two programs on three asserts beat one on five and three on one
        ([{0, 1, 2, 3, 4}, {0, 1, 2}, {4}, {0, 1, 2}, {4}, {4}], ((1, 3), (0, 1, 2))),
        # exactly the same asserts: programs that hold more do not join
        ([{0}, {0, 1}, {0}, {0}], ((0, 2, 3), (0,))),
        # a tie: more programs
        ([{0, 1, 2, 3}, {4, 5}, {4, 5}], ((1, 2), (4, 5))),
        ([set(), set()], ((0, 1), ())),
        ([], ((), ())),
    ],
)
def test_the_largest_product_wins(held: list[set[int]], winner: Any) -> None:
    assert consensus([frozenset(asserts) for asserts in held]) == Consensus(*winner)
