"""Finds cuBLAS where pip puts it. The library looks only where the system does, and only at its first product."""

import contextlib
import ctypes
import importlib.metadata

PACKAGE = "nvidia-cublas-cu12"
LIBRARIES = ("libcublasLt.so.12", "libcublas.so.12")  # the second one needs the first


def load_cublas(package: str = PACKAGE, libraries: tuple[str, ...] = LIBRARIES) -> None:
    """Load `libraries` of `package`, so that they are found by name from now on. Nothing where they are not there."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = {file.name: file for file in importlib.metadata.files(package) or ()}
        for name in libraries:
            with contextlib.suppress(KeyError, OSError):  # the library itself says that it is missing
                ctypes.CDLL(str(files[name].locate()))
