"""Commands that get hostile files, each in a fork of one warmed process that bounds and measures it.

    python -m support.hostile < JSON

A fork gets little more memory than it has, and is killed when it takes long: a hostile file fails its own test and
harms neither the others nor the machine. A server that becomes ready is stopped.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pangu_convert.download import cache_folder
from support import TESTS

COMMANDS = {
    "pangu-convert": "pangu_convert.cli",
    "pangu-train": "pangu_training.cli",
    "pangu-serve": "pangu_server.cli",
}
HUNG_SECONDS = 60  # many times what the slowest takes
PEAK_BYTES = 1 << 30
READY = "ready on http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    command: tuple[str, ...]
    code: int  # minus the signal that killed it
    stdout: str
    stderr: str
    peak_bytes: int

    @property
    def complaint(self) -> str:
        """What is wrong with a refusal in one line and exit 2; empty if nothing is."""
        lines = [line for line in self.stderr.splitlines() if not line.startswith("caution: ")]
        wrong = ""
        if self.code == -signal.SIGKILL:
            wrong = "took too long"
        elif self.code != 2:
            wrong = f"exit code {self.code}"
        elif len(lines) != 1 or not lines[0].startswith(f"{self.command[0]}: error: "):
            wrong = "not one line"
        elif not lines[0].isprintable() or len(lines[0]) > 3000:
            wrong = "not a line to read"
        elif self.peak_bytes > PEAK_BYTES:
            wrong = f"{self.peak_bytes >> 20} MiB"
        return wrong and f"{' '.join(self.command)}: {wrong}: {self.stderr[-1500:]}"


def ended(commands: Iterable[Sequence[object]], *, warm: Iterable[Sequence[object]] = ()) -> list[Ended]:
    """How each of `commands` ends, in order. `warm` are run first, and have to succeed."""
    given = {
        "warm": [[str(word) for word in command] for command in warm],
        "commands": [[str(word) for word in command] for command in commands],
    }
    with tempfile.TemporaryDirectory() as home:
        kernels = cache_folder() / "kernels"  # compiled once, not again here
        kernels.mkdir(parents=True, exist_ok=True)
        (Path(home) / "kernels").symlink_to(kernels)
        process = subprocess.run(
            [sys.executable, "-m", "support.hostile"],
            cwd=TESTS,
            env={**os.environ, "PANGU_HOME": home, "TQDM_DISABLE": "1"},  # a bar is not a line
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        assert not {"artifacts", "checkpoints"} & {entry.name for entry in Path(home).iterdir()}
    results = [json.loads(line) for line in process.stdout.splitlines()]
    return [Ended(**{**result, "command": tuple(result["command"])}) for result in results]


def run(command: Sequence[str]) -> int:
    """The exit code of a command in this process; 1 and its traceback for what it lets through."""
    try:
        return int(importlib.import_module(COMMANDS[command[0]]).main(list(command[1:])))
    except BaseException:  # as the interpreter would
        traceback.print_exc()
        return 1


def forked(command: Sequence[str], folder: Path) -> Ended:
    """`command` in a fork, its output in `folder`."""
    files = [folder / "stdout", folder / "stderr"]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for number, file in enumerate(files, start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            most = virtual_bytes() + 2 * PEAK_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            code = run(command)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    started, stopped = time.monotonic(), False
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            break
        if command[0] == "pangu-serve" and not stopped and READY in read(files[0]):
            os.kill(child, signal.SIGTERM)
            stopped = True
        if time.monotonic() - started > HUNG_SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return Ended(
        command=tuple(command),
        code=os.waitstatus_to_exitcode(status),
        stdout=read(files[0])[-5000:],
        stderr=read(files[1])[-100_000:],
        peak_bytes=usage.ru_maxrss << 10,
    )


def read(file: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return file.read_text(errors="replace")
    return ""


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> int:
    given: dict[str, Any] = json.load(sys.stdin)
    for command in given["warm"]:
        with contextlib.redirect_stdout(sys.stderr):
            assert run(command) == 0, command
    with tempfile.TemporaryDirectory() as folder:
        for command in given["commands"]:
            print(json.dumps(asdict(forked(command, Path(folder)))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
