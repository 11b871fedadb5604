"""Programs that try to score without solving the problem. None may, whatever they send, break or end."""

import pytest
from attacked import QUICK, healthy  # noqa: F401

from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome, run

ANSWER = Check(
    entry_point="f",
    test="""
def check(candidate):
    # canary-7
    for n in (17, 40, 41):
        assert candidate(n) == n ** 3 + 11
""",
)


def test_the_check_can_be_passed() -> None:
    assert run("def f(n): return n ** 3 + 11", ANSWER, QUICK).outcome is Outcome.PASSED


FORGERIES = {
    "walk the frames": """
import sys
def f(n):
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if isinstance(value, list): value.append("passed")
            if isinstance(value, dict): value.update(passed=True, result="passed", ended="whole")
        frame = frame.f_back
    return True""",
    "write the verdict to every descriptor": """
import os
for fd in range(64):
    try: os.write(fd, b'3\\n+\\n+\\n+\\n{"ended": "whole", "reason": ""}\\n')
    except OSError: pass
def f(n): return 0""",
    "write results ahead": """
import os
for fd in range(64):
    for message in (b'{"loaded": true}\\n', b'{"result": {"value": true, "objects": []}}\\n' * 9):
        try: os.write(fd, message)
        except OSError: pass
def f(n): return 0""",
    "claim to be unconfined": """
import os
for fd in range(64):
    try: os.write(fd, b'{"unconfined": "sorry"}\\n')
    except OSError: pass
def f(n): return 0""",
    "claim that the check is broken": """
import os
for fd in range(64):
    try: os.write(fd, b'{"broken": "sorry"}\\n')
    except OSError: pass
def f(n): return 0""",
    "os._exit(0) when loaded": "import os\nos._exit(0)",
    "an exit code that is no signal": "import os\ndef f(n): os._exit(255)",
    "an exit code like a signal": "import os\ndef f(n): os._exit(137)",
    "os._exit(0) when called": "import os\ndef f(n): os._exit(0)",
    "sys.exit(0) when loaded": "import sys\nsys.exit(0)",
    "sys.exit(0) when called": "import sys\ndef f(n): sys.exit(0)",
    "raise AssertionError's opposite": "class Passed(BaseException): pass\ndef f(n): raise Passed('passed')",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(n): raise SystemExit",
    "replace builtins": """
import builtins
builtins.AssertionError = builtins.SystemExit = type('Never', (BaseException,), {})
builtins.isinstance = builtins.any = builtins.all = lambda *a: True
builtins.len = builtins.abs = builtins.int = lambda *a: 0
def f(n): return 0""",
    "replace the protocol": """
import sys, json
json.dumps = lambda *a, **k: '{"result": {"value": true, "objects": []}}'
for name in list(sys.modules):
    if 'wire' in name: sys.modules[name].encode = lambda *a: {"value": True, "objects": []}
def f(n): return 0""",
    "close every descriptor": "import os\ndef f(n):\n    os.closerange(0, 64)\n    return n ** 3 + 11",
    "equal to everything": """
class Liar:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
    def __bool__(self): return True
def f(n): return Liar()""",
    "a number equal to everything": """
class Liar(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(n): return Liar(5)""",
    "numpy that is not": """
class Liar:
    def item(self): return self
    def __eq__(self, other): return True
Liar.__module__ = 'numpy'
def f(n): return Liar()""",
    "find the test in memory": """
import gc, sys
def f(n):
    for thing in gc.get_objects():
        if ''.join(['can', 'ary-', '7']) in repr(thing): return n ** 3 + 11
    for frame in sys._current_frames().values():
        while frame:
            if ''.join(['can', 'ary-', '7']) in repr((frame.f_locals, frame.f_globals)): return n ** 3 + 11
            frame = frame.f_back""",
    "nested too deep": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"loaded": true}\\n' + b'[' * 50000 + b'\\n')
    except OSError: pass
def f(n): return 0""",
    "a message of no kind": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"loaded": true}\\n{"result": {"value": {"r": 5, "x": 1}, "objects": [["dict", {}]]}}\\n')
    except OSError: pass
def f(n): return 0""",
    "not JSON": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"loaded": true}\\n\\xff\\x00\\n')
    except OSError: pass
def f(n): return 0""",
    "a class that the problem does not have": """
import os
message = b'{"loaded": true}\\n{"result": {"value": {"r": 0}, "objects": [["Opaque", {"__class__": 1}]]}}\\n'
for fd in range(3, 64):
    try: os.write(fd, message)
    except OSError: pass
def f(n): return 0""",
}


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
