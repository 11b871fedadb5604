"""Kernels of the engine in Triton: quantized products, attention over pages, sampling.

This module can be imported without Triton. Ask `triton_installed` before importing one that needs it.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from pangu_convert.download import cache_folder


def kernels_folder() -> Path:
    """Where compiled kernels and launch shapes are kept: `$PANGU_HOME/kernels`."""
    return cache_folder() / "kernels"


def triton_installed() -> bool:
    """Whether Triton is there.

    Triton compiles into `$PANGU_HOME/kernels/triton`, unless `$TRITON_CACHE_DIR` says another folder. It reads that
    variable when it is imported, so this function comes first.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(kernels_folder() / "triton"))
    return find_spec("triton") is not None
