"""What this machine's CPU can do."""

from pathlib import Path


def int8_products_are_exact() -> bool:
    """Whether CTranslate2's int8 products are: without VNNI instructions they saturate at 16 bits (docs/found.md)."""
    return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
