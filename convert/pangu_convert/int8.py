"""What this machine's CPU makes of CTranslate2's int8. Standard library only."""

import os
import platform
from pathlib import Path

CPU = Path("/proc/cpuinfo")
TRUE = ("1", "true", "TRUE")  # as CTranslate2 reads its variables
CAUTION = (
    "this CPU has no VNNI instructions, without which CTranslate2's int8 products can overflow: answers can be "
    "worse than on other machines; use --quantization float32, or the transformers or gptq format"
)


def int8_caution(compute_type: str, device: str = "cpu") -> str | None:
    """A warning for whoever computes in int8 on an x86 CPU that does so inexactly; see docs/found.md."""
    if device != "cpu" or not compute_type.startswith("int8") or not CPU.is_file():
        return None
    text = CPU.read_text(encoding="utf-8", errors="replace")
    return CAUTION if "avx" in text and "vnni" not in text else None


def packs_int8() -> bool:
    """Whether CTranslate2 packs int8 matrices once, when it loads them. Else it packs each again at every step.

    Its rule: it packs for MKL, and takes MKL on Intel's CPUs, where `CT2_USE_MKL` and `CT2_PACKED_GEMM` do not say
    otherwise. Its log has the answer too ("GEMM_S8 backend"), but only once a model is loaded.
    """
    if os.environ.get("CT2_PACKED_GEMM", "1") not in TRUE:
        return False
    if asked := os.environ.get("CT2_USE_MKL"):
        return asked in TRUE
    vendor = CPU.read_text(encoding="utf-8", errors="replace") if CPU.is_file() else platform.processor()
    return "GenuineIntel" in vendor
