"""Work that would hold up the event loop, on threads. What is short does not wait behind what is long."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

INLINE_BYTES = 4 << 10  # of a body or an answer: its work takes a few milliseconds
SHORT_BYTES = 64 << 10
T = TypeVar("T")


class Aside:
    """Threads for short and for long work. One thread for the latter: its memory is taken once."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(2, thread_name_prefix="aside-short")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="aside-long")

    async def __call__(self, size: int, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)`, which is work on `size` bytes; here where that is next to nothing."""
        if size <= INLINE_BYTES:
            return function(*arguments)
        threads = self._short if size <= SHORT_BYTES else self._long
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
