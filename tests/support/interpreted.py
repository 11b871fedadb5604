"""Triton's kernels on a CPU: import this before a module of kernels. Without Triton the tests are skipped."""

import pytest

triton = pytest.importorskip("triton")

from triton.runtime.interpreter import InterpretedFunction  # noqa: E402

if not isinstance(triton.language.zeros, InterpretedFunction):
    raise RuntimeError("Triton was imported before tests/conftest.py could set TRITON_INTERPRET=1")
