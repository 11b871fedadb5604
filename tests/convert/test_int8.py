"""What is known of int8 on this CPU: who is told that it is inexact, and whether it is packed once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Artifacts

from pangu_convert import int8


@pytest.mark.parametrize(
    ("cpu", "compute_type", "device", "warned"),
    [
        ("flags : sse2 avx avx2 fma", "int8_float32", "cpu", True),
        ("flags : sse2 avx avx2 fma", "int8", "cuda", False),
        ("flags : sse2 avx avx2 fma", "float32", "cpu", False),
        ("flags : avx2 avx512f avx512_vnni", "int8_float32", "cpu", False),
        ("flags : avx2 avx_vnni", "int8_float32", "cpu", False),
        ("Features : fp asimd asimddp", "int8_float32", "cpu", False),
    ],
)
def test_int8_on_a_cpu_without_vnni_is_said(
    cpu: str, compute_type: str, device: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "CPU", tmp_path / "cpuinfo")
    assert int8.int8_caution(compute_type, device) is None, "nothing is known of this machine"
    int8.CPU.write_text(cpu, encoding="utf-8")
    assert (int8.int8_caution(compute_type, device) is not None) == warned


@pytest.mark.parametrize(
    ("cpu", "variables", "packs"),
    [
        ("vendor_id : GenuineIntel", {}, True),
        ("vendor_id : AuthenticAMD", {}, False),
        ("CPU implementer : 0x41", {}, False),
        ("vendor_id : GenuineIntel", {"CT2_USE_MKL": "0"}, False),
        ("vendor_id : AuthenticAMD", {"CT2_USE_MKL": "1"}, True),
        ("vendor_id : GenuineIntel", {"CT2_USE_MKL": ""}, True),
        ("vendor_id : GenuineIntel", {"CT2_PACKED_GEMM": "0"}, False),
    ],
)
def test_which_cpu_packs_int8_once(
    cpu: str, variables: dict[str, str], packs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "CPU", tmp_path / "cpuinfo")
    int8.CPU.write_text(cpu, encoding="utf-8")
    for name in ("CT2_USE_MKL", "CT2_PACKED_GEMM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert int8.packs_int8() == packs


@pytest.mark.parametrize("variables", [{}, {"CT2_USE_MKL": "0"}, {"CT2_PACKED_GEMM": "0"}])
def test_the_library_says_the_same_of_this_machine(
    artifacts: Artifacts, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log, in a process of its own: the library decides once."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    model = artifacts("tiny_starcoder", "ctranslate2", "--quantization", "int8", "--no-smooth")
    program = f"import ctranslate2; ctranslate2.Generator({str(model)!r}, device='cpu')"
    environment = {**os.environ, "CT2_VERBOSE": "1"}
    log = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stderr
    packed = re.search(r"GEMM_S8 backend: \S+ \(packed: (true|false)", log)
    assert packed is not None, log
    assert int8.packs_int8() == (packed[1] == "true")
