"""What the tests of attacks on the sandbox share."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pangu_training.sandbox.execution import Policy

QUICK = Policy(cpu_seconds=1, check_cpu_seconds=3, idle_seconds=1, memory_bytes=1 << 28)


def children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found.update(task.read_text().split())
    return found


@pytest.fixture(autouse=True)
def healthy() -> Iterator[None]:
    """The parent has as many descriptors, children and temporary files after an attack as before."""
    before = (len(os.listdir("/proc/self/fd")), children(), set(os.listdir(tempfile.gettempdir())))
    yield
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert children() == before[1]
    new = set(os.listdir(tempfile.gettempdir())) - before[2]
    assert not any("sandbox" in name or "attack" in name for name in new)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    file = tmp_path / "secret"
    file.write_text("mine")
    file.chmod(0o666)
    return file
