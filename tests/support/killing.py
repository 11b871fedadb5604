"""A command killed before each change that it makes on the disk, and run again: what a kill -9 at that moment leaves.

    python -m support.killing MODULE OUTPUT STEP ARGUMENT…

It runs once undisturbed, which loads the libraries; all further runs are forks of this process. Changes are those that
Python sees: a file opened to be written, renamed, linked, removed, made durable. What a library of another language
writes is cut at its half and its last byte. STEP 3 takes every third change only. Prints what went wrong, a line each,
and how often it killed. All that it empties between runs stands next to OUTPUT: $PANGU_HOME is a folder there too.
"""

import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from support import TESTS

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REMOVALS = ("os.rmdir", "os.remove")
CHANGES = (*REMOVALS, "os.rename", "os.link", "os.mkdir", "os.chmod", "os.truncate")


def kill_before(number: int, folder: Path) -> None:
    """Have the kernel kill this process before the change of that number within `folder`."""
    left = number

    def change(path: object) -> None:
        nonlocal left
        if str(os.fspath(path) if isinstance(path, str | bytes | os.PathLike) else path).startswith(
            str(folder)
        ):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in REMOVALS and arguments[1] != -1:  # in a folder that is open
            change(f"{os.readlink(f'/proc/self/fd/{arguments[1]}')}/{arguments[0]}")
        elif event in CHANGES or (event == "open" and arguments[2] & WRITING):
            change(arguments[0])

    fsync = os.fsync

    def seen_fsync(descriptor: int) -> None:
        change(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = seen_fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


def kill_beyond(size_bytes: int) -> None:
    """Have the kernel kill this process when it writes more than that into a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def forked(work: Callable[[], int]) -> int:
    """What `work` returns in a fork of this process; minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def identity(output: Path) -> str:
    """The hash of a folder that is whole; raises for any other."""
    from pangu_convert.artifact import read_artifact, verify
    from pangu_training.stage.checkpoint import read_checkpoint
    from pangu_training.stage.identity import MANIFEST, checkpoint_hash

    if not (output / MANIFEST).exists():
        return checkpoint_hash(read_checkpoint(output))
    artifact = read_artifact(output)
    verify(artifact)
    return artifact.manifest.sha256


def home_of(output: Path) -> Path:
    """The only $PANGU_HOME of a run: it is emptied, so it is never the one of who runs the tests."""
    return output.with_name("home")


def main(module: str, output: Path, step: int, arguments: list[str]) -> int:
    """Kill and run again until a run is not killed any more."""
    home = home_of(output)
    assert os.environ["PANGU_HOME"] == str(home)
    command = importlib.import_module(module)

    def run() -> int:
        return int(command.main(arguments))

    old = output.with_name("old")  # what --force replaces
    if output.exists():
        output.rename(old)

    def restore() -> None:
        for folder in (home, *output.parent.glob(f".{output.name}.*"), output):
            shutil.rmtree(folder, ignore_errors=True)
        if old.exists():
            shutil.copytree(old, output)

    restore()
    assert run() == 0  # here, so that forks have all libraries
    whole = identity(output)
    good = {whole, identity(old)} if old.exists() else {whole}
    sizes = {file.stat().st_size for file in [*output.rglob("*"), *home.rglob("*")] if file.is_file()}
    cuts = sorted({cut for size in sizes for cut in (size // 2, size - 1) if cut > 0})
    kills = 0

    def check(kill: Callable[[], None], what: str) -> bool:
        """Whether the run was killed."""
        nonlocal kills
        restore()

        def harmed() -> int:
            kill()
            return run()

        ended = forked(harmed)
        if ended >= 0:
            return False
        kills += 1
        left = identity(output) if output.exists() else None
        if left is not None and left not in good:
            print(f"killed {what}: {output} passes for a whole one")
        if forked(run) != 0 and left != whole:
            print(f"killed {what}: it does not run again")
        elif identity(output) != whole:
            print(f"killed {what}: another result")
        if debris := [file.name for file in output.parent.glob(f".{output.name}.*")]:
            print(f"killed {what}: {debris} stays")
        return True

    number = 1
    while check(partial(kill_before, number, output.parent), f"before change {number}"):
        number += step
    for cut in cuts:
        check(partial(kill_beyond, cut), f"at byte {cut} of a file")
    print(f"{kills} kills")
    return 0


def killed(
    *arguments: object, output: Path, step: int = 1, environment: Mapping[str, str] | None = None
) -> list[str]:
    """What goes wrong with a verb of `pangu-convert` that is killed; the last line says how often it was."""
    environment = {**os.environ, **(environment or {}), "PANGU_HOME": str(home_of(output))}
    words = [sys.executable, "-m", "support.killing", "pangu_convert.cli", output, step, *arguments]
    ended = subprocess.run(
        [*map(str, words), "--output", str(output)],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [
        line for line in ended.stdout.splitlines() if line.startswith("killed") or line.endswith(" kills")
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
