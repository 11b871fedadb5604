"""What this machine's CPU makes of CTranslate2's int8. Standard library only."""

from pathlib import Path

CPU = Path("/proc/cpuinfo")
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
