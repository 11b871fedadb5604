"""Quantized products and attention over pages: for CPUs in numba, for GPUs in Triton. No compiler is needed.

Import it before one of its modules: what they compile is kept in `$PANGU_HOME/kernels`.
"""

import os

from pangu_convert.download import cache_folder

# Triton and numba read these when they are imported.
for _name in ("TRITON_CACHE_DIR", "NUMBA_CACHE_DIR"):
    os.environ.setdefault(_name, str(cache_folder() / "kernels" / _name.split("_")[0].lower()))
