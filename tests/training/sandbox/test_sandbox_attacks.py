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
from support import ROOT
from support.attacked import QUICK, healthy, secret  # noqa: F401
from support.attacks import EXHAUSTIONS, HARM, HARMS, exhaustion, harm

from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.execution import Outcome, run

NOBODY = 65534
CALLS = {"ptrace": 101, "mount": 165, "unshare": 272, "setns": 308, "keyctl": 250, "add_key": 248, "bpf": 321}
CALLS |= {"perf_event_open": 298, "io_uring_setup": 425, "process_vm_readv": 310, "userfaultfd": 323}
CALLS |= {"clone": 56, "vfork": 58, "clone3": 435, "open_by_handle_at": 304, "pidfd_open": 434, "prctl": 157}
CALLS |= {"shmget": 29, "mq_open": 240, "timer_create": 222, "seccomp": 317, "chroot": 161, "unknown": 9999}
CALLS |= {"getpid of x32": 0x40000000 + 39}


def test_the_check_can_be_passed() -> None:
    assert run("def f(): return True", HARM, QUICK).outcome is Outcome.PASSED


@pytest.mark.parametrize(("action", "reason"), HARMS.values(), ids=HARMS)
def test_no_harm_is_done(action: str, reason: str, secret: Path) -> None:  # noqa: F811
    result = run(harm(action, secret), HARM, QUICK)
    assert result.outcome is Outcome.ERROR, result
    assert reason in result.reason
    assert secret.read_text() == "mine"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64's calls")
@pytest.mark.parametrize("number", CALLS.values(), ids=CALLS)
def test_dangerous_system_calls_are_refused(number: int, secret: Path) -> None:  # noqa: F811
    action = f"c = ctypes.CDLL(None, use_errno=True)\n    if c.syscall({number}, 0, 0, 0, 0, 0) < 0:\n"
    action += "        raise OSError(ctypes.get_errno(), 'refused')"
    result = run(harm(action, secret), HARM, QUICK)
    assert result.outcome is Outcome.ERROR, result
    assert "PermissionError" in result.reason


@pytest.mark.parametrize(("action", "outcomes"), EXHAUSTIONS.values(), ids=EXHAUSTIONS)
def test_nothing_is_exhausted(action: str, outcomes: set[Outcome]) -> None:
    result = run(exhaustion(action), HARM, QUICK)
    assert result.outcome in outcomes, result
    assert result.cpu_seconds < 2 * QUICK.cpu_seconds + 6  # the kernel's limit, where the parent is late


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
