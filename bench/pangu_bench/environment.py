"""The machine that figures were taken on: without it they mean nothing."""

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pangu_bench.memory import gpu_names
from pangu_training.stage.identity import library_versions

# Of the CPU's features, those that decide which kernels run.
ISA = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)
COPY_BYTES = 256 << 20
COPY_REPEATS = 5
GPU_COPY = """
import sys, torch
size, repeats = map(int, sys.argv[1:])
source = torch.ones(size, dtype=torch.uint8, device="cuda")
target, milliseconds = torch.zeros_like(source), []
for _ in range(1 + repeats):
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started.record()
    target.copy_(source)
    ended.record()
    torch.cuda.synchronize()
    milliseconds.append(started.elapsed_time(ended))
print(2 * size / (min(milliseconds) / 1000))
"""


def environment(threads: int) -> dict[str, Any]:
    """Machine, versions, date; `threads` are those that compute."""
    facts = _cpu_facts()
    return {
        "cpu": facts.get("model name", platform.machine()),
        "isa": [flag for flag in ISA if flag in (facts.get("flags") or facts.get("Features", "")).split()],
        "cpus": len(os.sched_getaffinity(0)),
        "threads": threads,
        "gpus": gpu_names(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": library_versions(),
        "date": now(),
    }


def now() -> str:
    """The time, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def copy_bytes_per_second(threads: int) -> float:
    """What the main memory moves, read and written, when `threads` threads copy: the best of a few tries.

    Decoding at batch 1 reads every weight that it multiplies once a token: their bytes x tokens/s cannot be far above.
    """
    import numpy as np

    source = np.ones(COPY_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    pairs = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    fastest = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(COPY_REPEATS):
            started = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * COPY_BYTES / fastest


def gpu_copy_bytes_per_second() -> float | None:
    """What the GPU's memory moves, read and written, in a copy; None where torch cannot tell.

    In a process of its own, which takes what it held of that memory along.
    """
    measured = subprocess.run(
        [sys.executable, "-P", "-c", GPU_COPY, str(COPY_BYTES), str(COPY_REPEATS)],
        capture_output=True,
        text=True,
        check=False,
    )
    return float(measured.stdout) if measured.returncode == 0 else None


def _cpu_facts() -> dict[str, str]:
    """The first processor's lines in /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
