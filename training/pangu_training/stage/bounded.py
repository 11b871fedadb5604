"""A function called in a process of its own, with bounds on its time and memory: for what files of others make us run.

    python -m pangu_training.stage.bounded SECONDS MODULE FUNCTION [LIBRARY…] < arguments.json

A tokenizer's rules and a chat template are programs. They may loop, take all memory, or bring their library down.
"""

import importlib
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

MOST_SECONDS = 8  # of computing, once the libraries are there
MOST_WAITING_SECONDS = 300  # of anything, on a machine that has other work
MOST_BYTES = 1 << 29  # more than the libraries take


def bounded(
    module: str,
    function: str,
    *arguments: Any,
    libraries: tuple[str, ...] = (),
    most_seconds: int = MOST_SECONDS,
) -> Any:
    """What `module.function(*arguments)` returns; both are JSON. `libraries` are imported before its time begins.

    Raises:
        ValueError: it raised something, took too long or too much memory, or its process died; says which.
    """
    # -P: else modules would be looked for in the current folder first, which may be the one that is not trusted.
    command = [sys.executable, "-P", "-m", __name__, str(most_seconds), module, function, *libraries]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(arguments),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MOST_WAITING_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it does not end within {MOST_WAITING_SECONDS} seconds") from None
    if ended.returncode == 0:
        return json.loads(ended.stdout.splitlines()[-1])
    if ended.returncode == 1:
        raise ValueError(ended.stdout.splitlines()[-1] if ended.stdout else "it did not start")
    if ended.returncode == -signal.SIGXCPU:
        raise ValueError(f"it takes more than {most_seconds} seconds")
    raise ValueError("it takes too much memory, or brings its library down")


def main() -> int:
    """Call the function; its result, or what it raised, is the last line on stdout."""
    seconds, module, function, *libraries = sys.argv[1:]
    called = getattr(importlib.import_module(module), function)
    for library in libraries:
        importlib.import_module(library)
    arguments = json.load(sys.stdin)
    _limit(int(seconds))
    try:
        print(json.dumps(called(*arguments)))
    except MemoryError:
        return 2
    except BaseException as error:  # a library written in Rust raises no `Exception`
        print(" ".join(f"{type(error).__name__}: {error}".split()))
        return 1
    return 0


def _limit(most_seconds: int) -> None:
    limit_seconds(most_seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_bytes(MOST_BYTES)


def limit_seconds(most_seconds: int) -> None:
    """From now on this process may compute that long, give or take a second; then SIGXCPU ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + most_seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard < 0 else min(seconds, hard), hard))


def limit_bytes(most_bytes: int) -> None:
    """From now on this process may take that much memory more than it has."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = held + most_bytes if hard < 0 else min(held + most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    sys.exit(main())
