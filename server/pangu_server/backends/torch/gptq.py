"""Loads a GPTQ artifact for the torch backend: gptqmodel's packed kernels, or de-quantized where it has none.

transformers cannot load a quantized GPTBigCode by itself, so gptqmodel does. On a GPU it picks the fastest
kernel. On a CPU it is fast for 4 bits only: its kernel for the rest unpacks every matrix at every token
(measured: more than a second a token for 135 million weights). There the matrices are unpacked once: the
numbers are the same, at the speed and size of an unquantized model.
"""

import contextlib
import ctypes
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import torch

from pangu_convert.artifact import Artifact
from pangu_convert.gptq_weights import load_dequantized
from pangu_server.backends.torch.backend import Loaded

PACKED_CPU_BITS, PACKED_CPU_GROUP_SIZES = 4, (32, 64, 128)


def load_gptq(artifact: Artifact, device: str) -> Loaded:
    """Load `artifact` on `device`; raises what the libraries raise."""
    quantization = json.loads((artifact.path / "quantize_config.json").read_text(encoding="utf-8"))
    bits, group_size = int(quantization["bits"]), int(quantization["group_size"])
    # Half precision is ten times slower on a CPU, and single precision has no kernels on a GPU.
    replaced = {"float16": "float32"} if device == "cpu" else {"float32": "bfloat16"}
    dtype = replaced.get(artifact.manifest.dtype, artifact.manifest.dtype)
    name = f"int{bits} g{group_size}" if group_size > 0 else f"int{bits}"
    packed = runs_packed(device, bits, group_size)
    if packed:
        model, kernel = load_packed(artifact, device, getattr(torch, dtype))
    else:
        model, kernel = load_dequantized(artifact, getattr(torch, dtype)), "dequantized"
    return_freed_memory()
    if not packed:
        return Loaded(model=model, compute_type=f"{dtype} (from {name})", kernel=kernel)
    # The CPU kernels multiply in bfloat16 whatever they are given; the rest of the model keeps its type.
    inputs = " with bfloat16 inputs" if device == "cpu" and dtype != "bfloat16" else ""
    return Loaded(model=model, compute_type=f"{name}{inputs} + {dtype}", kernel=kernel)


def runs_packed(device: str, bits: int, group_size: int) -> bool:
    """Whether there is a kernel for packed weights; else they are unpacked, to the memory of an unquantized model."""
    return device != "cpu" or (bits == PACKED_CPU_BITS and group_size in PACKED_CPU_GROUP_SIZES)


def load_packed(artifact: Artifact, device: str, dtype: torch.dtype) -> tuple[Any, str]:
    """The model with packed weights, and the class names of the kernels that run them."""
    with _quiet():
        from gptqmodel import GPTQModel
        from gptqmodel.nn_modules.qlinear import BaseQuantLinear

        model = GPTQModel.load(str(artifact.path), device=device, dtype=dtype).model.eval()
        # The kernels repack at their first call: now, not in somebody's request.
        with torch.inference_mode():
            model(torch.zeros((1, 1), dtype=torch.long, device=model.device))
    kernels = {type(module).__name__ for module in model.modules() if isinstance(module, BaseQuantLinear)}
    return model, " + ".join(sorted(kernels))


def return_freed_memory() -> None:
    """Give the system back what unpacking has freed; glibc keeps it (0.3 GB, with 0.7 GB of weights)."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep gptqmodel's banner and bars off the server's stdout, and its logging set-up out of the server's."""
    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)  # `basicConfig` does nothing when there is a handler
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeHandler(placeholder)
