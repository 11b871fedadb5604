"""Kernels that numba spreads over several threads."""

import threading
from collections.abc import Callable
from typing import Any

import numba

# Where there is no OpenMP numba has a pool of its own, and ends the process when two threads use it at a time.
_pool = threading.Lock()
_caller = threading.local()


def spread(kernel: Any, threads: int) -> Callable[..., None]:
    """`kernel` on `threads` threads, or as many as numba has; by itself it would take all that the machine has."""
    if threads == 1:
        plain: Callable[..., None] = kernel
        return plain
    count = min(threads, numba.config.NUMBA_NUM_THREADS)

    def call(*arguments: Any) -> None:
        with _pool:
            if getattr(_caller, "count", 0) != count:  # numba's count belongs to the calling thread
                numba.set_num_threads(count)
                _caller.count = count
            kernel(*arguments)

    return call
