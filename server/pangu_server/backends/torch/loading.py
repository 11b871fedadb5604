"""Any artifact as a transformers model with our kernels, straight onto its device."""

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.torch.linear import Installer
from pangu_server.backends.torch.placing import build
from pangu_server.backends.torch.weights import open_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model ready to generate, and how it computes."""

    model: Any
    compute_type: str
    kernel: str | None = None
    quantized_bytes: int = 0  # of matrices that are not parameters of the model


Load = Callable[[Artifact, str], Loaded]  # the artifact, the device


def load_model(artifact: Artifact, device: str) -> Loaded:
    """Load `artifact` on `device`.

    Raises:
        ArtifactError: a file is damaged, or the model does not fit.
    """
    try:
        weights = open_weights(artifact, device)
        quantized = artifact.manifest.format != "transformers"
        dtype = _dtype(weights.dtype, device, quantized)
        model = build(weights.config, artifact.manifest.architecture)
        installer = Installer(model, weights, torch.device(device), dtype, torch.get_num_threads())
        installer.install()
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        raise ArtifactError(f"torch cannot load {artifact.path}: {error}") from error
    del weights
    if device == "cpu" and dtype == torch.float32:
        with contextlib.suppress(ImportError):  # no numba: transformers' own
            from pangu_server.backends.torch.kernels.cpu_norm import replace_norms

            replace_norms(model)
    _return_freed_memory()
    name = str(dtype).removeprefix("torch.")
    return Loaded(
        model=model,
        compute_type=f"{_bits(artifact.manifest.quantization)} + {name}" if quantized else name,
        kernel=", ".join(sorted(installer.kernels)) or None,
        quantized_bytes=installer.quantized_bytes,
    )


def memory_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers in memory; what several names share counts once."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _dtype(stored: torch.dtype, device: str, quantized: bool) -> torch.dtype:
    """The type to compute in: the artifact's, where the device is fast in it and has kernels for it."""
    if quantized and device == "cpu":
        return torch.float32
    if quantized and stored == torch.float32:
        return torch.bfloat16
    return stored


def _bits(quantization: str) -> str:
    """`int8_float16` as int8, `gptq-int4-g64` and `awq-int4-g64` as int4 g64: the rest is told apart."""
    return quantization.removeprefix("gptq-").removeprefix("awq-").split("_")[0].replace("-g", " g")


def _return_freed_memory() -> None:
    """Give the system back what packing has freed; glibc keeps it (0.3 GB, with 0.7 GB of weights)."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
