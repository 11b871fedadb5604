"""Who is told that int8 is inexact on this CPU."""

from pathlib import Path

import pytest

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
