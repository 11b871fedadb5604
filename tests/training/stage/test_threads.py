"""How many compute threads a server takes by itself."""

import os
import subprocess
import sys

import pytest

from pangu_training.stage import command
from pangu_training.stage.command import serving_threads, usable_cores, usable_cpus


def test_a_core_is_left_to_others() -> None:
    assert 1 <= usable_cores() <= usable_cpus()
    assert serving_threads() == max(1, usable_cores() - 1)


@pytest.mark.parametrize(
    ("cpus", "cores", "threads"), [(range(8), 4, 3), ([0, 1], 1, 1), ([0, 2], 2, 1), ([3], 1, 1)]
)
def test_two_cpus_of_one_core_are_one(
    monkeypatch: pytest.MonkeyPatch, cpus: list[int], cores: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cpus))
    monkeypatch.setattr(command, "_core_of", lambda cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}")
    assert (usable_cores(), serving_threads()) == (cores, threads)


def test_a_cpu_that_the_system_does_not_describe_is_a_core() -> None:
    assert command._core_of(10**6) == "1000000"


def test_only_cpus_that_may_be_used_count() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from pangu_training.stage.command import usable_cores; print(usable_cores())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "1"
