"""Commands harmed at each change that they make on the disk, and run again: what a kill -9 at that moment leaves, or a
full disk.

    python -m support.killing < JSON

Each runs once undisturbed, which loads the libraries; all further runs are forks of this process. Changes are those
that Python sees: a file opened to be written, renamed, linked, removed, made durable. What another language's library
writes is cut at its half. `step` 3 takes every third change only. All that is emptied between runs
lies next to the output: $PANGU_HOME is a folder there too.
"""

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from errno import ENOSPC
from functools import partial
from pathlib import Path
from typing import Any

from support import TESTS

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REMOVALS = ("os.rmdir", "os.remove")
CHANGES = ("os.rename", "os.link", "os.mkdir", "os.chmod", "os.truncate")
UNHARMED = 77  # exit code of a run that made fewer changes than the one to be harmed
FULL = ("no space left on the disk", "No space left on device", "File too large")
COMMANDS = {"convert": "pangu_convert.cli", "train": "pangu_training.cli"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A verb that writes a folder, and how often it is harmed."""

    arguments: Sequence[str]
    output: str
    command: str = "convert"  # a key of `COMMANDS`
    step: int = 1
    before: Sequence[Sequence[str]] = field(
        default_factory=tuple
    )  # commands with arguments that it needs first


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    raise OSError(ENOSPC, os.strerror(ENOSPC))


def harm_from(number: int, folder: Path, harm: Callable[[], None]) -> Callable[[], bool]:
    """Do `harm` before each change within `folder` from that number on; whether it was done. A full disk can remove."""
    count = 0

    def change(path: object) -> None:
        nonlocal count
        place = os.fspath(path) if isinstance(path, str | bytes | os.PathLike) else path
        if str(place).startswith(str(folder)):
            count += 1
            if count >= number:
                harm()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in REMOVALS:
            if harm is disk_full:
                return
            inside = arguments[1] != -1  # of a folder that is open
            change(
                f"{os.readlink(f'/proc/self/fd/{arguments[1]}')}/{arguments[0]}" if inside else arguments[0]
            )
        elif event in CHANGES or (event == "open" and arguments[2] & WRITING):
            change(arguments[0])

    fsync = os.fsync

    def seen_fsync(descriptor: int) -> None:
        change(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = seen_fsync  # type: ignore[assignment]
    sys.addaudithook(hook)
    return lambda: count >= number


def limit_files(size_bytes: int, harm: Callable[[], None]) -> None:
    """No file can have more bytes: who writes more is killed, or told."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if harm is killed else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def forked(work: Callable[[], int]) -> tuple[int, str]:
    """What `work` returns in a fork of this process, or minus the signal that ended it; and what it said."""
    sys.stdout.flush()
    reading, writing = os.pipe()  # a file would have the limits of all files
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            code = work()
            sys.stdout.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, errors="replace") as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


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


def keep_quantized(kept: Path) -> None:
    """Quantize once: gptqmodel takes its time, in a process of its own. Later runs find what it wrote."""
    from pangu_convert import gptq
    from pangu_convert.gptq_process import run_worker

    def remembered(job: Any, work: Path, num_layers: int) -> Mapping[str, Any]:
        if not kept.exists():
            done = run_worker(job, work, num_layers)
            shutil.copytree(job.folder, kept)
            (kept / "done").write_text(json.dumps(done))
            return done
        shutil.copytree(kept, job.folder)
        return dict(json.loads((kept / "done").read_text()))

    setattr(gptq, "run_worker", remembered)  # noqa: B010


class Harmed:
    """A job, run undisturbed once; then harmed."""

    def __init__(self, job: Job) -> None:
        self.output = Path(job.output)
        self.folder = self.output.parent
        # The only $PANGU_HOME of these runs: it is emptied, so it is never the one of who runs the tests.
        self.home = self.output.with_name("home")
        os.environ["PANGU_HOME"] = str(self.home)
        for name, *arguments in job.before:
            assert importlib.import_module(COMMANDS[name]).main(arguments) == 0
        self.job, self.command = job, importlib.import_module(COMMANDS[job.command])
        self.old = self.output.with_name("old")  # what --force replaces
        if self.output.exists():
            self.output.rename(self.old)
        self.restore()
        assert self.run() == 0  # here, so that forks have all libraries
        self.whole = identity(self.output)
        self.good = {self.whole} | ({identity(self.old)} if self.old.exists() else set())
        files = [file for place in (self.output, self.home) for file in place.rglob("*") if file.is_file()]
        sizes = {file.stat().st_size for file in files}
        self.cuts = sorted({size // 2 for size in sizes if size > 1})
        self.harms, self.wrong = 0, []  # type: int, list[str]

    def run(self) -> int:
        return int(self.command.main([*self.job.arguments, "--output", self.job.output]))

    def restore(self) -> None:
        for folder in (self.home, *self.folder.glob(f".{self.output.name}.*"), self.output):
            shutil.rmtree(folder, ignore_errors=True)
        if self.old.exists():
            shutil.copytree(self.old, self.output)

    def everywhere(self, harm: Callable[[], None]) -> None:
        """Harm each change by `harm`, and cut each size of a file."""
        number = 1
        while self.check(
            harm, f"{harm.__name__} from change {number}", partial(harm_from, number, self.folder, harm)
        ):
            number += self.job.step
        for cut in self.cuts:
            self.check(harm, f"{harm.__name__} at byte {cut} of a file", partial(limit_files, cut, harm))

    def check(
        self, harm: Callable[[], None], what: str, prepare: Callable[[], Callable[[], bool] | None]
    ) -> bool:
        """Whether the run was harmed; what is wrong after it goes to `wrong`."""
        self.restore()

        def harmed() -> int:
            reached = prepare()
            code = self.run()
            return code if reached is None or reached() else UNHARMED

        ended, said = forked(harmed)
        if ended == UNHARMED or (ended == 0 and "byte" in what):
            return False
        self.harms += 1
        lines = [line for line in said.splitlines() if ": error: " in line]
        if harm is disk_full and (
            ended != 2
            or "Traceback" in said
            or len(lines) != 1
            or not any(words in lines[0] for words in FULL)
        ):
            self.wrong.append(f"{what}: exit code {ended}: {said[-1500:]}")
        left = identity(self.output) if self.output.exists() else None
        if left is not None and left not in self.good:
            self.wrong.append(f"{what}: {self.output} passes for a whole one")
        if harm is disk_full and self.debris():
            self.wrong.append(f"{what}: {self.debris()} stays")
        if forked(self.run)[0] != 0 and left != self.whole:
            self.wrong.append(f"{what}: it does not run again")
        elif identity(self.output) != self.whole:
            self.wrong.append(f"{what}: another result")
        if self.debris():
            self.wrong.append(f"{what}: {self.debris()} stays after another run")
        return True

    def debris(self) -> list[str]:
        return [file.name for file in self.folder.glob(f".{self.output.name}.*")]


def main() -> int:
    given = json.load(sys.stdin)
    keep_quantized(Path(given["kept"]))
    results = {}
    for name, fields in given["jobs"].items():
        job = Harmed(Job(**fields))
        counts = {}
        for harm in (killed, disk_full):
            job.harms = 0
            job.everywhere(harm)
            counts[harm.__name__] = job.harms
        results[name] = {"wrong": job.wrong, **counts}
    print(json.dumps(results))
    return 0


def harmed(
    jobs: Mapping[str, Job], kept: Path, environment: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """By the name of each job: what went `wrong` with it, and how often it was `killed` and its disk full."""
    given = {"kept": str(kept), "jobs": {name: asdict(job) for name, job in jobs.items()}}
    ended = subprocess.run(
        [sys.executable, "-m", "support.killing"],
        cwd=TESTS,
        env={**os.environ, **(environment or {}), "TQDM_DISABLE": "1"},
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-5000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
