"""Values between judge and candidate: they arrive as they are, or as nothing."""

from typing import Any

import pytest

from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome, run
from pangu_training.sandbox.wire import Opaque, WireError, decode, encode


class Node:
    def __init__(self, value: Any = 0, next: Any = None) -> None:
        self.value, self.next = value, next


NO_CLASSES: dict[str, Any] = {}
VALUES: list[Any] = [
    None,
    True,
    1,
    -(2**63) - 1,
    10**6000,
    0.1,
    -0.0,
    float("inf"),
    1e308,
    2 - 3j,
    "ä\0\ud800🙂",
    b"\0\xff",
]
VALUES += [[], [[1], [2, [3]]], (), (1, (2,)), {1, 2}, frozenset("ab"), {"a": 1, 2: {3: None}, (1, 2): [4]}]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_crosses_as_it_is(value: Any) -> None:
    copy = decode(encode(value, ()), NO_CLASSES.__getitem__)
    assert copy == value
    assert type(copy) is type(value)


def test_values_cross_between_the_processes() -> None:
    values = [value for value in VALUES if value not in (10**6000, float("inf"))]
    test = """
def check(candidate):
    for x in VALUES:
        y = candidate(x)
        assert y == x and type(y) is type(x)
"""
    check = Check(entry_point="f", test=test, definitions=f"VALUES = {values!r}")
    assert run("def f(x): return x", check).outcome is Outcome.PASSED


def test_nodes_cross_with_what_they_share() -> None:
    shared = Node(2)
    first = Node([shared, (shared,)], shared)
    shared.next = first
    copy = decode(encode(first, {"Node"}), {"Node": Node}.__getitem__)
    assert copy.next is copy.value[0] is copy.value[1][0]
    assert copy.next.next is copy
    long = Node()
    for _ in range(20_000):
        long = Node(1, long)
    copy, length = decode(encode(long, {"Node"}), {"Node": Node}.__getitem__), 0
    while copy := copy.next:
        length += 1
    assert length == 20_000


def test_what_is_no_data_equals_nothing() -> None:
    for value in (range(3), iter([]), object(), print, Node()):
        copy = decode(encode(value, ()), NO_CLASSES.__getitem__)
        assert isinstance(copy, Opaque)
        assert copy != value


@pytest.mark.parametrize(
    "data", [1, {}, {"x": 1}, {"t": 1}, {"i": "z"}, {"r": 0}, {"s": [[]]}, {"t": [], "i": "1"}]
)
def test_a_malformed_value_is_refused(data: Any) -> None:
    with pytest.raises(WireError):
        decode({"value": data, "objects": []} if data != 1 else data, NO_CLASSES.__getitem__)
