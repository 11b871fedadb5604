"""Programs that try to score without solving the problem. None may, whatever they send, break or end."""

import pytest
from support.attacked import QUICK, healthy  # noqa: F401
from support.attacks import ANSWER, FORGERIES

from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome, run


def test_the_check_can_be_passed() -> None:
    assert run("def f(n): return n ** 3 + 11", ANSWER, QUICK).outcome is Outcome.PASSED


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_a_verdict_cannot_be_forged(program: str) -> None:
    result = run(program, ANSWER, QUICK)
    assert result.outcome in (Outcome.FAILED, Outcome.ERROR, Outcome.KILLED, Outcome.TIMEOUT), result
    assert result.passed_checks == 0


NODE = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
"""
LYING_NODE = """
class ListNode:
    def __eq__(self, other): return True
    __ne__ = __eq__
def f(n):
    n.val = ListNode()
    return n
"""


def test_a_node_that_lies_about_equality_is_judged_by_its_values() -> None:
    test = "def check(candidate):\n    assert candidate(ListNode(3)).val == 4\n    assert candidate(ListNode(9)) == 1\n"
    check = Check(entry_point="f", test=test, definitions=NODE)
    assert run(LYING_NODE, check, QUICK).passed_checks == 0
    assert run(NODE + "def f(n): return ListNode(n.val + 1)", check, QUICK).passed_checks == 1
