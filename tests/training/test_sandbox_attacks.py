"""Programs that try to do harm. None may, as root or as anybody.

An attack's `f` returns True when it got what it wanted, and the check asks for just that; so `passed` means
that the attack worked. `reason` holds what stopped it, so that an attack with a fault of its own is noticed.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from attacked import QUICK, healthy  # noqa: F401

from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome, run

ROOT = Path(__file__).parents[2]
NOBODY = 65534
HARM = Check(entry_point="f", test="def check(candidate):\n    assert candidate() is True\n")
PERMISSION = "PermissionError"
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
CALLS = {"ptrace": 101, "mount": 165, "unshare": 272, "setns": 308, "keyctl": 250, "add_key": 248, "bpf": 321}
CALLS |= {"perf_event_open": 298, "io_uring_setup": 425, "process_vm_readv": 310, "userfaultfd": 323}
CALLS |= {"clone": 56, "vfork": 58, "clone3": 435, "open_by_handle_at": 304, "pidfd_open": 434, "prctl": 157}
CALLS |= {"shmget": 29, "mq_open": 240, "timer_create": 222, "seccomp": 317, "chroot": 161, "unknown": 9999}
CALLS |= {"getpid of x32": 0x40000000 + 39}


def test_the_check_can_be_passed() -> None:
    assert run("def f(): return True", HARM, QUICK).outcome is Outcome.PASSED


def harm(action: str, secret: Path) -> str:
    modules = "import ctypes, fcntl, os, resource, socket\n"
    return f"{modules}SECRET = {str(secret)!r}\ndef f():\n    {action}\n    return True\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    file = tmp_path / "secret"
    file.write_text("mine")
    file.chmod(0o666)
    return file


@pytest.mark.parametrize(("action", "reason"), HARMS.values(), ids=HARMS)
def test_no_harm_is_done(action: str, reason: str, secret: Path) -> None:
    result = run(harm(action, secret), HARM, QUICK)
    assert result.outcome is Outcome.ERROR, result
    assert reason in result.reason
    assert secret.read_text() == "mine"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64's calls")
@pytest.mark.parametrize("number", CALLS.values(), ids=CALLS)
def test_dangerous_system_calls_are_refused(number: int, secret: Path) -> None:
    action = f"c = ctypes.CDLL(None, use_errno=True)\n    if c.syscall({number}, 0, 0, 0, 0, 0) < 0:\n"
    action += "        raise OSError(ctypes.get_errno(), 'refused')"
    result = run(harm(action, secret), HARM, QUICK)
    assert result.outcome is Outcome.ERROR, result
    assert "PermissionError" in result.reason


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
    "a result that is no data": ("return lambda: 1", {Outcome.FAILED}),
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


@pytest.mark.parametrize(("action", "outcomes"), EXHAUSTIONS.values(), ids=EXHAUSTIONS)
def test_nothing_is_exhausted(action: str, outcomes: set[Outcome]) -> None:
    result = run(f"import os, signal, sys, time\ndef f():\n    {action}\n", HARM, QUICK)
    assert result.outcome in outcomes, result
    assert result.cpu_seconds < 5


def test_a_result_cannot_exhaust_the_judge() -> None:
    check = Check(entry_point="f", test="def check(candidate):\n    assert sum(range(candidate())) == 3\n")
    result = run("def f(): return 10 ** 12", check, QUICK)
    assert result.outcome is Outcome.TIMEOUT
    assert result.reason.startswith("the checks used up 3 s")


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as an unprivileged user already")
def test_all_of_this_as_an_unprivileged_user() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = shutil.which(f"python{version}", path="/usr/local/bin:/usr/bin")
    if python is None or not shutil.which("setpriv"):
        pytest.skip(f"no python{version} that another user can start")
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
    files = [__file__, str(Path(__file__).with_name("test_sandbox_forgeries.py"))]
    path = [sysconfig.get_path("purelib"), str(ROOT / "training")]
    finished = subprocess.run(
        [*as_nobody, python, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *files],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "1 skipped" in finished.stdout
