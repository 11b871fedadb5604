"""Kernels of several threads take as many as they are told, and several engines can call them at a time."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

PROGRAM = """
import threading
import numba
import torch
from pangu_server.backends.torch.kernels.cpu_linear import CpuLinear
from pangu_server.backends.torch.quantized import Quantized

integers = torch.randint(-128, 127, (512, 64), dtype=torch.int8)
product = CpuLinear(Quantized(integers, torch.ones(512, 1), 8, None), None, 2)
x = torch.randn(3, 64)
expected = product(x)

def work():
    for _ in range(100):
        assert torch.equal(product(x), expected)
    counts.append(numba.get_num_threads())

counts = []
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(counts)
"""


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_threads(layer: str) -> None:
    settings = {"NUMBA_NUM_THREADS": "4", "NUMBA_THREADING_LAYER": layer}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "[2, 2, 2]\n"
