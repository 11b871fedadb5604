"""Kernels of the engine in Triton: quantized products, attention over pages, sampling.

Only this module can be imported without Triton. Ask `triton_installed` before importing another one.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from pangu_convert.download import cache_folder


def kernels_folder() -> Path:
    """Where compiled kernels and launch shapes are kept: `$PANGU_HOME/kernels`."""
    return cache_folder() / "kernels"


def triton_installed() -> bool:
    """Whether the other modules of this package can be imported.

    Triton compiles into `$PANGU_HOME/kernels/triton`, unless `$TRITON_CACHE_DIR` says another folder. It reads that
    variable when it is imported, so this function comes first.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(kernels_folder() / "triton"))
    return find_spec("triton") is not None
