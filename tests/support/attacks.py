"""Attacks on the sandbox: programs that try to do harm, to use everything up, or to score without being right.

An attack's `f` returns True when it did harm, and the check asks for just that; so `passed` means that it worked.
"""

from pathlib import Path

from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome

HARM = Check(entry_point="f", test="def check(candidate):\n    assert candidate() is True\n")
PERMISSION = "PermissionError"
# what it does, and what stops it: an attack with a fault of its own is noticed
HARMS = {
    "the password file": ("open('/etc/passwd').read()", PERMISSION),
    "a file that all may read": ("open(SECRET).read()", PERMISSION),
    "the parent's environment": ("open(f'/proc/{os.getppid()}/environ').read()", PERMISSION),
    "the parent's memory": ("open(f'/proc/{os.getppid()}/mem', 'rb').read(1)", PERMISSION),
    "its own environment file": ("open('/proc/self/environ').read()", PERMISSION),
    "list the root": ("os.listdir('/')", PERMISSION),
    "list the temporary folder": ("os.listdir('/tmp')", PERMISSION),
    "a link to a secret": ("os.symlink(SECRET, 'link')", PERMISSION),
    "a hard link": ("os.link(SECRET, SECRET + '-attack')", PERMISSION),
    "write a file": ("open('/tmp/attack', 'w')", PERMISSION),
    "write where it is": ("open('attack', 'w')", PERMISSION),
    "a temporary file": ("__import__('tempfile').mkstemp(prefix='attack')", "No usable temporary directory"),
    "shared memory": ("open('/dev/shm/attack', 'w')", PERMISSION),
    "a file in memory": ("os.memfd_create('attack')", PERMISSION),
    "make a folder": ("os.mkdir('/tmp/attack')", PERMISSION),
    "delete": ("os.unlink(SECRET)", PERMISSION),
    "rename": ("os.rename(SECRET, SECRET + '-attack')", PERMISSION),
    "truncate": ("os.truncate(SECRET, 0)", PERMISSION),
    "chmod": ("os.chmod(SECRET, 0o777)", PERMISSION),
    "touch": ("os.utime(SECRET)", PERMISSION),
    "the standard library": ("open(os.__file__, 'a')", PERMISSION),
    "TCP": ("socket.create_connection(('127.0.0.1', 80))", PERMISSION),
    "UDP": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", PERMISSION),
    "a unix socket": ("socket.socket(socket.AF_UNIX)", PERMISSION),
    "an abstract socket": ("socket.socket(socket.AF_UNIX).connect('\\0x')", PERMISSION),
    "a socket pair": ("socket.socketpair()", PERMISSION),
    "netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", PERMISSION),
    "fork": ("os.fork()", PERMISSION),
    "a daemon": ("os.fork() or os.setsid() or os.fork()", PERMISSION),
    "a command": ("__import__('subprocess').run(['/bin/true'])", PERMISSION),
    "spawn": ("os.posix_spawn('/bin/true', ['true'], {})", PERMISSION),
    "exec": ("os.execv('/bin/true', ['true'])", PERMISSION),
    "a thread": ("__import__('threading').Thread(target=print).start()", "can't start new thread"),
    "busy threads": (
        "[__import__('_thread').start_new_thread(f, ()) for _ in range(99)]",
        "can't start new thread",
    ),
    "kill the parent": ("os.kill(os.getppid(), 9)", PERMISSION),
    "stop the parent": ("os.kill(os.getppid(), 19)", PERMISSION),
    "kill the group": ("os.kill(0, 9)", PERMISSION),
    "kill all": ("os.kill(-1, 9)", PERMISSION),
    "signal the parent by a pipe": ("fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())", PERMISSION),
    "limit the parent": ("resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))", PERMISSION),
    "raise its limits": ("resource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "ValueError"),
    "slow the parent": ("os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", PERMISSION),
    "move the parent": ("os.sched_setaffinity(os.getppid(), {0})", PERMISSION),
    "become root": ("os.setresuid(0, 0, 0)", PERMISSION),
    "another session": ("os.setsid()", PERMISSION),
}


def harm(action: str, secret: Path) -> str:
    modules = "import ctypes, fcntl, os, resource, socket\n"
    return f"{modules}SECRET = {str(secret)!r}\ndef f():\n    {action}\n    return True\n"


def exhaustion(action: str) -> str:
    return f"import os, signal, sys, time\ndef f():\n    {action}\n"


# what it does, and how it may end
EXHAUSTIONS = {
    "an endless loop": ("while True: pass", {Outcome.TIMEOUT}),
    "an endless loop that catches all": (
        "for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
        "    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
        {Outcome.TIMEOUT},
    ),
    "a long computation in C": ("10 ** (10 ** 8)", {Outcome.TIMEOUT}),
    "sleep": ("time.sleep(10 ** 6)", {Outcome.TIMEOUT}),
    "many short sleeps": ("while True: time.sleep(0.001)", {Outcome.TIMEOUT}),
    "stop itself": ("os.kill(os.getpid(), signal.SIGSTOP)", {Outcome.TIMEOUT}),
    "wait for input": ("input()", {Outcome.ERROR}),
    "a memory bomb": ("bytearray(10 ** 11)", {Outcome.ERROR}),
    "memory bit by bit": ("x = []\n    while True: x.append(bytearray(10 ** 6))", {Outcome.ERROR}),
    "recursion": ("f()", {Outcome.ERROR}),
    "recursion without limit": (
        "sys.setrecursionlimit(10 ** 9)\n    g = lambda n: [*map(g, [n])]\n    g(0)",
        {Outcome.KILLED, Outcome.ERROR},
    ),
    "an output flood": ("while True: print('x' * 10 ** 6)", {Outcome.TIMEOUT}),
    "an error flood": ("while True: os.write(2, b'x' * 10 ** 6)", {Outcome.TIMEOUT}),
    "a huge result": ("return 'x' * (40 << 20)", {Outcome.ERROR}),
    "a huge number": ("return 1 << (10 ** 8)", {Outcome.FAILED, Outcome.ERROR}),
    "a result that contains itself": ("x = []\n    x.append(x)\n    return x", {Outcome.ERROR}),
    "a result that is not data": ("return lambda: 1", {Outcome.FAILED}),
    "an endless result": ("return iter(int, 1)", {Outcome.FAILED}),
    "a crash": ("__import__('ctypes').string_at(0)", {Outcome.KILLED}),
    "kill itself": ("os.kill(os.getpid(), 9)", {Outcome.KILLED}),
    "descriptors": ("x = []\n    while True: x.append(os.pipe())", {Outcome.ERROR}),
    "an answer that never ends": (
        "while True:\n        for fd in range(3, 9):\n            try: os.write(fd, b'x' * 4096)\n"
        "            except OSError: pass",
        {Outcome.TIMEOUT, Outcome.ERROR, Outcome.KILLED},
    ),
}

ANSWER = Check(
    entry_point="f",
    test="""
def check(candidate):
    # canary-7
    for n in (17, 40, 41):
        assert candidate(n) == n ** 3 + 11
""",
)

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
    "an exit code that is not a signal": "import os\ndef f(n): os._exit(255)",
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
