"""Runs a program against a check and says how it came out.

The time that decides is CPU time, which a busy or slow machine does not take from a program. A program that
waits for nothing is found by looking: neither it nor the judge runs, nor wants to run.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tqdm import tqdm

from pangu_training.sandbox import syscalls
from pangu_training.sandbox.checks import Check
from pangu_training.sandbox.tiers import SandboxError, Tier, readable_paths, tier

_TICK_SECONDS = 0.1
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_MAX_VERDICT_BYTES = 16 << 20
# The whole environment of the confined processes. A fixed hash seed: the same program, the same verdict.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Outcome(StrEnum):
    """How a run came out."""

    PASSED = "passed"  # every check that was reached held, and at least one was
    FAILED = "failed"  # it ran; some check did not hold
    ERROR = "error"  # it raised or ended itself, and no check held
    SYNTAX = "syntax"  # it does not compile
    TIMEOUT = "timeout"  # CPU seconds used up, or waiting for nothing
    KILLED = "killed"  # a signal ended it: a crash, memory
    BROKEN = "broken"  # the check cannot run: this says nothing about the program


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a program may use."""

    cpu_seconds: int = 10  # of the program, over all checks
    check_cpu_seconds: int = 60  # of the judge: the tests' own work, a reference solution included
    idle_seconds: float = 10  # in which neither of them runs
    memory_bytes: int = 1 << 30  # address space of each
    packages: tuple[str, ...] = ()  # installed ones that may be imported besides the standard library
    unsafe: bool = False  # run even where nothing can be isolated


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a program came out; checks are asserts, counted as they are reached."""

    outcome: Outcome
    passed_checks: int = 0
    total_checks: int = 0  # when the run was cut short: as many as are written, or were reached
    marks: str = ""  # of each check that was reached: + it held, - it did not, ! the program raised
    reason: str = ""  # one line; may quote a test, so keep it from models
    cpu_seconds: float = 0.0  # of the program, the interpreter's start included


DEFAULT_POLICY = Policy()


def run(
    program: str,
    check: Check,
    policy: Policy = DEFAULT_POLICY,
    *,
    isolation: Tier | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Run `program` against `check`; its processes are gone when this returns or raises.

    `isolation` is `tier()` unless given. `stop`, once set, ends the run with `KeyboardInterrupt`.

    Raises:
        SandboxError: the program could not be confined; it was not run.
    """
    isolation = isolation or tier(unsafe=policy.unsafe)
    readable, origins = readable_paths(policy.packages)
    common = {
        "records": check.records,
        "memory_bytes": policy.memory_bytes,
        "read": readable,
        "packages": origins,
        "landlock": isolation.landlock,
        "seccomp": syscalls.supported(),
        "parent": 0 if isolation.bubblewrap else os.getpid(),
    }
    with contextlib.ExitStack() as stack:
        ends = stack.enter_context(contextlib.ExitStack())  # the children's ends of the pipes, until they run
        call_read, call_write, answer_read, answer_write = *_pipe(ends), *_pipe(ends)
        verdict_read, verdict_write = os.pipe()
        stack.callback(os.close, verdict_read)
        ends.callback(os.close, verdict_write)
        candidate = _Process(
            isolation.command("candidate", readable),
            (call_read, answer_write),
            common
            | {"read_end": call_read, "write_end": answer_write, "cpu_seconds": policy.cpu_seconds}
            | {"program": program, "entry_point": check.entry_point},
        )
        stack.callback(candidate.end)
        judge = _Process(
            isolation.command("judge", readable),
            (answer_read, call_write, verdict_write),
            common
            | {"read_end": answer_read, "write_end": call_write, "cpu_seconds": policy.check_cpu_seconds}
            | {"verdict": verdict_write, "definitions": check.definitions, "test": check.test},
        )
        stack.callback(judge.end)
        ends.close()
        limits = ((candidate, policy.cpu_seconds), (judge, policy.check_cpu_seconds))
        verdict, idle = _watch(verdict_read, limits, policy.idle_seconds, stop)
        candidate.end()
        judge.end()
        return _result(verdict, idle, candidate, judge, policy)


def run_many(
    jobs: Sequence[tuple[str, Check]],
    policy: Policy = DEFAULT_POLICY,
    *,
    workers: int | None = None,
    progress: str | None = None,
) -> list[Result]:
    """`run` for every (program, check), in order; `workers` at a time, else one a core.

    `progress` names a progress bar on stderr. Ctrl-C leaves no process behind.
    """
    with contextlib.closing(run_as_completed(jobs, policy, workers=workers)) as done:
        bar = tqdm(done, total=len(jobs), desc=progress, unit="program", disable=progress is None)
        results = dict(bar)
    return [results[at] for at in range(len(jobs))]


def run_as_completed(
    jobs: Sequence[tuple[str, Check]], policy: Policy = DEFAULT_POLICY, *, workers: int | None = None
) -> Generator[tuple[int, Result], None, None]:
    """`run` for every (program, check): its place in `jobs` and its result, as they come.

    Close it when done (`contextlib.closing`): then neither an exception nor Ctrl-C leaves a process behind.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        try:
            running = {
                pool.submit(run, program, check, policy, stop=stop): at
                for at, (program, check) in enumerate(jobs)
            }
            for job in as_completed(running):
                yield running[job], job.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


class _Process:
    """One confined process and what is left of it."""

    def __init__(self, command: Sequence[str], keep_open: Any, settings: dict[str, Any]) -> None:
        self.signal, self.exit_code, self.cpu_seconds = 0, 0, 0.0  # once it ended
        with os.fdopen(os.memfd_create("settings"), "r+b") as file:
            file.write(json.dumps(settings).encode())
            file.seek(0)
            self._process = subprocess.Popen(
                command,
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )

    def look(self) -> tuple[bool, float]:
        """Whether it waits (sleeps or is stopped, rather than runs, wants to run or reads a disk); CPU seconds."""
        try:
            with open(f"/proc/{self._innermost()}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
        except OSError:
            return True, 0.0
        return fields[0] in b"StTZ", (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS

    def end(self) -> None:
        """Kill and reap it, once."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._innermost(), signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._process.returncode = code
        # bubblewrap passes a signal on as 128 + its number
        self.signal = -code if code < 0 else code - 128 if code - 128 in signal.valid_signals() else 0
        self.exit_code = code
        self.cpu_seconds = usage.ru_utime + usage.ru_stime

    def _innermost(self) -> int:
        """bubblewrap's child, where it is used; the confined process cannot have children of its own."""
        process_id = self._process.pid
        while True:
            try:
                with open(f"/proc/{process_id}/task/{process_id}/children", encoding="ascii") as file:
                    children = file.read().split()
            except OSError:
                return process_id
            if not children:
                return process_id
            process_id = int(children[0])


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe's read and write end, closed by `stack`."""
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


def _watch(
    verdict_read: int,
    limits: Sequence[tuple[_Process, int]],
    idle_seconds: float,
    stop: threading.Event | None,
) -> tuple[bytes, bool]:
    """What the judge wrote until its end or a limit, and whether all were found waiting for too long."""
    poll = select.poll()
    poll.register(verdict_read)
    verdict, idle, looked = bytearray(), 0.0, time.monotonic()
    while len(verdict) < _MAX_VERDICT_BYTES:
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if poll.poll(_TICK_SECONDS * 1000):
            block = os.read(verdict_read, 1 << 16)
            if not block:
                break
            verdict += block
        elapsed = time.monotonic() - looked
        if elapsed < _TICK_SECONDS:
            continue
        looked += elapsed
        seen = [process.look() for process, _ in limits]
        if any(used > limit for (_, used), (_, limit) in zip(seen, limits, strict=True)):
            break
        if all(waits for waits, _ in seen):
            idle += min(elapsed, 2 * _TICK_SECONDS)  # a machine that was stopped does not count
            if idle > idle_seconds:
                return bytes(verdict), True
    return bytes(verdict), False


def _result(verdict: bytes, idle: bool, candidate: _Process, judge: _Process, policy: Policy) -> Result:
    lines = verdict.decode().split("\n")
    ending = json.loads(lines[-2]) if len(lines) > 1 and lines[-2].startswith("{") else {}
    marks = "".join(line for line in lines if line in ("+", "-", "!"))
    passed, raised, reached = marks.count("+"), marks.count("!"), len(marks)
    written = int(lines[0]) if lines[0].isdigit() else 0
    reason = ending.get("reason", "")
    match ending.get("ended"):
        case "unconfined":
            raise SandboxError(f"a program could not be confined: {reason}")
        case Outcome.BROKEN:
            outcome = Outcome.BROKEN
        case _ if candidate.cpu_seconds > policy.cpu_seconds:
            outcome, reason = Outcome.TIMEOUT, f"used up {policy.cpu_seconds} s of CPU time"
        case _ if judge.cpu_seconds > policy.check_cpu_seconds:
            outcome, reason = Outcome.TIMEOUT, f"the checks used up {policy.check_cpu_seconds} s of CPU time"
        case _ if idle:
            outcome, reason = Outcome.TIMEOUT, f"waited {policy.idle_seconds:g} s for nothing"
        case "whole" if reached and reached == passed:
            outcome = Outcome.PASSED
        case "whole" | "cut":
            outcome = Outcome.ERROR if raised and not passed else Outcome.FAILED
        case "gone" if candidate.signal:
            outcome, reason = Outcome.KILLED, f"died of {signal.Signals(candidate.signal).name}"
        case "gone":
            outcome = Outcome.ERROR
        case Outcome.SYNTAX | Outcome.ERROR as ended:
            outcome = Outcome(ended)
        case _:  # what the program returned was too much for the judge
            outcome, reason = Outcome.KILLED, f"the checks' process ended ({judge.signal or judge.exit_code})"
    return Result(
        outcome=outcome,
        passed_checks=passed,
        total_checks=reached if ending.get("ended") == "whole" else max(reached, written),
        marks=marks,
        reason=" ".join(reason.split()),
        cpu_seconds=round(candidate.cpu_seconds, 3),
    )
