"""Quantized matrices in the places of a model's linear modules, and the kernel that multiplies each.

Modules that are given the same input one after the other (queries, keys, values; gate and up) are one product: the
first one called computes all of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from pangu_convert.artifact import ArtifactError
from pangu_server.backends.torch.parameters import Weights
from pangu_server.backends.torch.quantized import Quantized

# Names of modules of one parent that multiply the same input, in the order of their calls.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Kernel(Protocol):
    """A packed matrix: x (rows, inputs) -> (rows, outputs)."""

    @property
    def name(self) -> str:
        """What multiplies, for the startup line."""

    @property
    def nbytes(self) -> int:
        """Memory of the matrix."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, with the bias."""


class Dequantized:
    """A plain matrix, where no kernel is: the same numbers at the speed and size of an unquantized model."""

    name = "dequantized"

    def __init__(self, weight: Quantized, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._weight, self._bias = weight.dense(dtype), bias

    @property
    def nbytes(self) -> int:
        """Memory of the matrix."""
        return int(self._weight.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self._weight, self._bias)


def kernel_for(
    weight: Quantized, bias: torch.Tensor | None, device: torch.device, dtype: torch.dtype, threads: int
) -> Kernel:
    """The packed `weight` with the kernel that this device has for it; its numbers move to the device."""
    moved = replace(
        weight,
        integers=weight.integers.to(device),
        scales=weight.scales.to(device),
        order=None if weight.order is None else weight.order.to(device),
        shifts=None if weight.shifts is None else weight.shifts.to(device),
    )
    if device.type == "cuda":
        from pangu_server.backends.torch.kernels.triton_linear import TritonLinear

        if TritonLinear.supports(moved):
            return TritonLinear.pack(moved, bias, dtype)
    elif dtype == torch.float32:
        try:
            from pangu_server.backends.torch.kernels.cpu_linear import CpuLinear
        except ImportError:  # no numba on this platform
            return Dequantized(moved, bias, dtype)
        if CpuLinear.supports(moved):
            return CpuLinear(moved, bias, threads)
    return Dequantized(moved, bias, dtype)


class QuantizedLinear(nn.Module):  # type: ignore[misc]
    """A linear module whose matrix a kernel holds."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        return self.kernel(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class _Shared:
    """One product for several modules; remembers the input that it was computed from."""

    def __init__(self, kernel: Kernel, sizes: Sequence[int]) -> None:
        self.linear, self._sizes = QuantizedLinear(kernel), list(sizes)
        self._input: torch.Tensor | None = None
        self._parts: Sequence[torch.Tensor] = ()

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The result of module `index`."""
        if self._input is not x:
            self._input, self._parts = x, self.linear(x).split(self._sizes, dim=-1)
        part = self._parts[index]
        if index == len(self._sizes) - 1:
            self._input, self._parts = None, ()  # another tensor can come to lie there
        return part


class JoinedLinear(nn.Module):  # type: ignore[misc]
    """One of several modules that share a product."""

    def __init__(self, shared: _Shared, index: int) -> None:
        super().__init__()
        self.shared, self.index = shared, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        return self.shared.part(self.index, x)


class QuantizedEmbedding(nn.Module):  # type: ignore[misc]
    """Rows of a quantized matrix, by id, in the place of `module`."""

    def __init__(
        self, module: nn.Embedding, weight: Quantized, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        factor = getattr(module, "scalar_embed_scale", 1.0)  # Gemma's
        self.integers, self.scales = weight.integers.to(device), weight.scales.to(device) * factor
        self._dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """As `nn.Embedding`."""
        rows, scales = self.integers[ids], self.scales[ids]
        parts = rows.unflatten(-1, (scales.shape[-1], -1)) * scales[..., None]
        return parts.flatten(-2).to(self._dtype)


class Installer:
    """Puts weights into a model on the meta device, module by module. `kernels` counts what multiplies them."""

    def __init__(
        self, model: Any, weights: Weights, device: torch.device, dtype: torch.dtype, threads: int
    ) -> None:
        self._model, self._weights = model, weights
        self._device, self._dtype, self._threads = device, dtype, threads
        self._done: set[str] = set()
        self.kernels: dict[str, int] = {}
        self.quantized_bytes = 0

    def install(self) -> None:
        """All of them; `ArtifactError` as `Weights` raises it."""
        from pangu_server.backends.torch.placing import complete, place

        for name in self._weights.readers:
            if name in self._done:
                continue
            value = self._weights.read(name)
            self._done.add(name)
            if isinstance(value, Quantized):
                self._quantized(name, value)
            else:
                place(self._model, name, value, self._device, self._dtype)
        complete(self._model, self._device)

    def _quantized(self, name: str, weight: Quantized) -> None:
        owner = name.removesuffix(".weight")
        module = self._model.get_submodule(owner)
        if isinstance(module, nn.Embedding):
            self._replace(owner, QuantizedEmbedding(module, weight, self._device, self._dtype))
            self.quantized_bytes += weight.integers.nbytes
            tied = self._model.all_tied_weights_keys
            for other in [other for other, source in tied.items() if source == name]:
                self._replace(other.removesuffix(".weight"), self._linear([weight], [None]))
                del tied[other]  # there is no parameter to share
            return
        parent, _, last = owner.rpartition(".")
        for names in JOINED:
            owners = [f"{parent}.{member}" for member in names]
            if last == names[0] and all(f"{member}.weight" in self._weights.readers for member in owners):
                parts = [weight, *(self._weights.read(f"{member}.weight") for member in owners[1:])]
                if joinable(parts):
                    self._done.update(f"{member}.weight" for member in owners)
                    shared = _Shared(
                        self._kernel(parts, [self._bias(member) for member in owners]), sizes(parts)
                    )
                    for index, member in enumerate(owners):
                        self._replace(member, JoinedLinear(shared, index))
                    return
        self._replace(owner, self._linear([weight], [self._bias(owner)]))

    def _linear(self, parts: Sequence[Quantized], biases: Sequence[torch.Tensor | None]) -> QuantizedLinear:
        return QuantizedLinear(self._kernel(parts, biases))

    def _kernel(self, parts: Sequence[Quantized], biases: Sequence[torch.Tensor | None]) -> Kernel:
        kernel = kernel_for(join(parts), joined_bias(parts, biases), self._device, self._dtype, self._threads)
        self.kernels[kernel.name] = self.kernels.get(kernel.name, 0) + 1
        self.quantized_bytes += kernel.nbytes
        return kernel

    def _bias(self, owner: str) -> torch.Tensor | None:
        name = f"{owner}.bias"
        if name not in self._weights.readers:
            return None
        self._done.add(name)
        value = self._weights.read(name)
        if isinstance(value, Quantized):
            raise ArtifactError(f"{name} in {self._weights.path} is quantized: convert the checkpoint again")
        return value.to(self._device, self._dtype)

    def _replace(self, owner: str, module: nn.Module) -> None:
        parent, _, last = owner.rpartition(".")
        setattr(self._model.get_submodule(parent), last, module)


def joinable(parts: Sequence[Any]) -> bool:
    """Whether these are matrices that one product can hold."""
    first = parts[0]
    return all(
        isinstance(part, Quantized)
        and (part.bits, part.group) == (first.bits, first.group)
        and (part.shifts is None) == (first.shifts is None)
        and (part.order is first.order is None or _same(part.order, first.order))
        for part in parts
    )


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


def sizes(parts: Sequence[Quantized]) -> list[int]:
    """Outputs of each."""
    return [len(part.integers) for part in parts]


def join(parts: Sequence[Quantized]) -> Quantized:
    """Their outputs one below the other."""
    if len(parts) == 1:
        return parts[0]
    shifts = [part.shifts for part in parts if part.shifts is not None]  # of all, or none: see `joinable`
    return replace(
        parts[0],
        integers=torch.cat([part.integers for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        shifts=torch.cat(shifts) if shifts else None,
    )


def joined_bias(parts: Sequence[Quantized], biases: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Their biases one below the other; None if no part has one."""
    if all(bias is None for bias in biases):
        return None
    like = next(bias for bias in biases if bias is not None)
    return torch.cat(
        [
            like.new_zeros(len(part.integers)) if bias is None else bias
            for part, bias in zip(parts, biases, strict=True)
        ]
    )
