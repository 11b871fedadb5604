"""Asks the child process what it thinks of a grammar, and starts another one when a grammar has ended it."""

import contextlib
import json
import select
import signal
import subprocess
import sys
from pathlib import Path

from pangu_server.errors import GenerationFailed, RequestError
from pangu_server.grammar.wanted import Wanted

MAX_BYTES = 64 << 10  # of a grammar's text
MAX_SECONDS = 10  # by the clock, for what takes a second of computing
REASON_CHARACTERS = 300
# What the signal that ended the child says of the grammar; llguidance aborts when there is no memory.
ENDS = {
    signal.SIGPROF: "it takes more than a second to read",
    signal.SIGSEGV: "it is nested too deeply",
    signal.SIGBUS: "it is nested too deeply",
    signal.SIGABRT: "it takes too much memory to read",
    signal.SIGKILL: "it takes too long to read",
}


class Checker:
    """The child, started at first use. For one thread; `close` may come from another."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def check(self, line: str, wanted: Wanted) -> str:
        """The grammar in Lark's form; `line` is that of `wanted`.

        Blocks for a few milliseconds mostly, for `MAX_SECONDS` at most.

        Raises:
            RequestError: it is not a grammar, or takes too much to read.
        """
        answer = self._ask(line, wanted)
        if "error" in answer:
            raise refusal(wanted, answer["error"])
        return answer["grammar"]

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            _end(child)

    def _ask(self, line: str, wanted: Wanted) -> dict[str, str]:
        child = self._child = self._child or _start()
        assert child.stdin is not None
        assert child.stdout is not None
        said = ""
        with contextlib.suppress(OSError, ValueError):  # it has ended, or the server ends: see below
            child.stdin.write(line + "\n")
            child.stdin.flush()
            poll = select.poll()  # not `select`, which knows the first 1,024 descriptors only
            poll.register(child.stdout, select.POLLIN)
            if poll.poll(MAX_SECONDS * 1000):
                said = child.stdout.readline()
        if said:
            answer: dict[str, str] = json.loads(said)
            return answer
        self._child = None
        _end(child)
        reason = ENDS.get(signal.Signals(-child.returncode)) if child.returncode < 0 else None
        if reason is None:
            raise GenerationFailed(
                "the process that reads grammars does not run; the server's log has the cause"
            )
        raise refusal(wanted, reason)


def _start() -> "subprocess.Popen[str]":
    # By its path and isolated: it needs no module of the server, and none of the folder that this was started in.
    child = Path(__file__).with_name("child.py")
    return subprocess.Popen(
        [sys.executable, "-I", str(child)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError, ValueError):  # what was not written yet
            if pipe is not None:
                pipe.close()


def line_of(wanted: Wanted) -> str:
    """What the child is asked: a line of JSON.

    Raises:
        RequestError: it is too large, or is not JSON.
    """
    asked = {"kind": wanted.kind, "value": wanted.value, "whitespace": wanted.whitespace}
    try:
        line = json.dumps(asked, allow_nan=False)
    except RecursionError:
        raise refusal(wanted, "it is nested too deeply") from None
    except ValueError as error:
        raise refusal(wanted, str(error)) from None
    if len(line) > MAX_BYTES:
        raise refusal(wanted, f"it has more than {MAX_BYTES >> 10} KiB")
    return line


def refusal(wanted: Wanted, reason: str) -> RequestError:
    """A 400 with the library's reason as one line."""
    line = " ".join(reason.split())
    if len(line) > REASON_CHARACTERS:
        line = line[: REASON_CHARACTERS - 1] + "…"
    return RequestError(f"{wanted.param}: {line}", param=wanted.param)
