"""Meters, arrival times, and figures from rows."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted import scripted_artifact

from pangu_bench import memory
from pangu_bench.costs import spread
from pangu_bench.latency import Prompts, gaps
from pangu_bench.memory import Meters, Peak

MEGABYTE = 1 << 20
GROW = "input(); x = b'x' * (64 << 20); print(flush=True); input()"


def test_the_peak_is_of_the_process_and_of_the_time_watched() -> None:
    meters = Meters()
    command = [sys.executable, "-c", GROW]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        with Peak(meters, process.pid) as before:
            pass
        process.stdin.write(b"grow\n")
        process.stdin.flush()
        process.stdout.readline()
        with Peak(meters, process.pid) as after:
            pass
        process.stdin.write(b"end\n")
    for meter in ("pss", "rss"):
        assert 0 < before.sizes[meter] < 64 * MEGABYTE < after.sizes[meter]


def test_a_process_that_ends_while_it_is_watched_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process, Peak(Meters(), process.pid):
        process.wait()


@pytest.mark.parametrize("named", [True, False], ids=["processes are told apart", "they are not"])
def test_gpu_memory_is_the_process_where_the_driver_tells(
    named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [100]

    def processes(_: object) -> list[SimpleNamespace]:
        own = SimpleNamespace(pid=process.pid, usedGpuMemory=30 if named else None)
        return [SimpleNamespace(pid=1, usedGpuMemory=50), own]

    driver = SimpleNamespace(
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=used[0]),
        nvmlDeviceGetComputeRunningProcesses=processes,
    )
    monkeypatch.setattr(memory, "open_nvml", lambda: driver)
    with subprocess.Popen(["sleep", "60"]) as process:
        meters = Meters()
        used[0] = 140
        sizes = meters.read(process.pid)
        process.kill()
    assert sizes["nvml_device"] == 40
    assert sizes.get("nvml") == (30 if named else None)


def test_times_of_tokens_from_times_of_events() -> None:
    # an event of two tokens, one that repeats a count (the finish reason), and one before any token
    arrivals = [(0.5, 0), (1.0, 1), (1.2, 2), (1.6, 4), (1.9, 5), (2.5, 5)]
    ttft_seconds, itl_seconds = gaps(arrivals)
    assert ttft_seconds == 1.0
    assert itl_seconds == pytest.approx((0.2, 0.2, 0.2, 0.3))
    assert sum(itl_seconds) == pytest.approx(1.9 - 1.0), "TPOT is (last - first) / (tokens - 1)"
    assert gaps([(1.0, 3), (1.5, 4)]) == (1.0, (0.5,)), "nobody knows when tokens without text came"


def test_every_prompt_has_its_length_and_a_beginning_of_its_own(tmp_path: Path) -> None:
    prompts = Prompts(scripted_artifact(tmp_path), 6)
    made = [prompts.prompt(number, 300) for number in range(6)]
    assert {len(prompt) for prompt in made} == {300}
    assert len({tuple(prompt[:64]) for prompt in made}) == 6, "a server could reuse what it has computed"
    assert prompts.prompt(2, 10) == made[2][:10]


def test_the_spread_of_a_few_values() -> None:
    assert spread([3, 1, 2, 10]) == {"min": 1, "median": 2.5, "p95": 10, "max": 10}
    assert spread(list(range(1, 101)))["p95"] == 95
