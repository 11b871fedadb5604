"""A model's parameters by transformers' names, as some artifact holds them: complete, and nothing too much."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.torch.placing import build, stored_shapes
from pangu_server.backends.torch.quantized import Quantized
from pangu_training.stage.architecture import assign
from pangu_training.stage.finite import all_finite
from pangu_training.stage.renaming import Parts, single

Value: TypeAlias = torch.Tensor | Quantized
Readers: TypeAlias = Mapping[str, Callable[[], Value]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """Every parameter and stored buffer of a model; iterating reads them, in the order of the files."""

    path: Path  # of the artifact
    config: Any  # transformers' PretrainedConfig; `tie_word_embeddings` says what the files hold
    dtype: torch.dtype  # of what is not quantized
    shapes: Mapping[str, tuple[int, ...]]
    readers: Readers
    # Quantized matrices that no `Quantized` describes: they are read as plain ones, and named here then.
    unpacked: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        """Name and value; raises as `read`."""
        for name in self.readers:
            yield name, self.read(name)

    def read(self, name: str) -> Value:
        """The value of `name`; `ArtifactError` if it is damaged, not finite, or of another shape or kind."""
        value = self.readers[name]()
        shape = tuple((value.integers if isinstance(value, Quantized) else value).shape)
        numbers = value.scales if isinstance(value, Quantized) else value
        if not numbers.is_floating_point():
            raise ArtifactError(
                f"{name} in {self.path} is of type {numbers.dtype}: convert the checkpoint again"
            )
        if not all_finite(numbers):
            raise ArtifactError(
                f"{name} in {self.path} holds NaN or infinity: the model is broken; convert a whole checkpoint"
            )
        if shape != self.shapes[name]:
            raise ArtifactError(
                f"{name} in {self.path} has shape {list(shape)}, not the {list(self.shapes[name])} of its "
                "config: convert the checkpoint again"
            )
        return value


def matched(artifact: Artifact, config: Any, readers: Readers, unpacked: list[str] | None = None) -> Weights:
    """`readers` by the names of the artifact's architecture, without doubles of what is tied.

    Raises:
        ArtifactError: a parameter is missing, or one there that the model does not have.
    """
    model = build(config, artifact.manifest.architecture)
    places = assign(model, readers)
    if any(
        _differ(readers, *(places.stored.get(name) for name in pair))
        for pair in model.all_tied_weights_keys.items()
    ):
        config.tie_word_embeddings = False  # as transformers decides, with a warning
        model = build(config, artifact.manifest.architecture)
        places = assign(model, readers)
    for name in places.unknown:
        raise ArtifactError(
            f"{artifact.path} has a tensor {name}, which {type(model).__name__} does not: convert the checkpoint again"
        )
    for name in places.missing:
        raise ArtifactError(f"{artifact.path} has no tensor {name}: convert the checkpoint again")
    shapes = stored_shapes(model)
    owners = {
        part: name
        for name, parts in places.stored.items()
        if name in shapes
        for matrices in parts
        for part in matrices
    }
    # In the order of the files.
    names = dict.fromkeys(owners[part] for part in readers if part in owners)
    found = {name: _reader(readers, places.stored[name]) for name in names}
    return Weights(
        path=artifact.path,
        config=config,
        dtype=getattr(torch, artifact.manifest.dtype),
        shapes=shapes,
        readers=found,
        unpacked=[] if unpacked is None else unpacked,
    )


def _reader(readers: Readers, parts: Parts) -> Callable[[], Value]:
    name = single(parts)
    return partial(_read_experts, readers, parts) if name is None else readers[name]


def _read_experts(readers: Readers, parts: Parts) -> torch.Tensor:
    experts = []
    for names in parts:
        matrices = [value for name in names if isinstance(value := readers[name](), torch.Tensor)]
        if len(matrices) < len(names):
            raise ArtifactError(
                f"{names[0]} is quantized, and the torch engine knows no quantized experts: serve the model unquantized"
            )
        experts.append(torch.cat(matrices))
    return torch.stack(experts)


def _differ(readers: Readers, *pair: Parts | None) -> bool:
    """Whether these are two tensors, and not the same."""
    names = {single(parts) for parts in pair if parts is not None}
    if len(names) < 2:
        return False
    first, second = (readers[name]() for name in names if name is not None)
    both_plain = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    return not (both_plain and torch.equal(first, second))
