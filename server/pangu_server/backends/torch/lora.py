"""LoRA adapters while the base is served: each token of a step may have its own, and the weights stay as they are.

y + scale * B (A x), for the tokens of one adapter at a time. A step without any computes what it computed before.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.torch.placing import build
from pangu_server.backends.torch.rows import Part
from pangu_training.stage.adapter import Adapter, read_adapter
from pangu_training.stage.adapter_changes import pairs_of, read_floats

logger = logging.getLogger(__name__)


class Selection:
    """Whose tokens the current step computes. All adapted modules of a model read the same one."""

    def __init__(self) -> None:
        self.tokens = 0
        self.places: list[tuple[str, torch.Tensor | None]] = []  # adapter, int64 places; None: all tokens


class Adapted(nn.Module):  # type: ignore[misc]
    """A linear module, and what each adapter adds to it."""

    def __init__(self, inner: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.inner, self._selection = inner, selection
        self.pairs: dict[
            str, tuple[torch.Tensor, torch.Tensor]
        ] = {}  # A^T (inputs, r), scale * B^T (r, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the module inside, for the step's tokens one after the other."""
        y: torch.Tensor = self.inner(x)
        for name, places in self._selection.places:
            if name not in self.pairs:
                continue
            a, b = self.pairs[name]
            flat = x.reshape(-1, x.shape[-1])
            if len(flat) != self._selection.tokens:
                raise RuntimeError("an adapted module is given other tokens than the step's")
            if places is None:
                y = y + (flat @ a @ b).view_as(y)
            else:
                added = flat.index_select(0, places) @ a @ b
                y = y.reshape(len(flat), -1).index_add(0, places, added).view_as(y)
        return y


class Adapters:
    """The adapters of a model, in its modules. Changes the model."""

    def __init__(self, model: Any, artifact: Artifact, folders: Sequence[tuple[str, Path]]) -> None:
        """Read the adapters, each a name and a folder.

        Raises:
            ArtifactError, CheckpointError: one is not of this model, or is more than pairs of matrices.
        """
        self._device, self._selection = model.device, Selection()
        self.nbytes = 0
        # The modules as peft knows them: kernels may have taken their places.
        plain = build(model.config, artifact.manifest.architecture) if folders else None
        for name, folder in folders:
            adapter = read_adapter(folder)
            _require_base(adapter, artifact)
            for pair in pairs_of(adapter, plain):
                a, b = read_floats(pair.a).T, read_floats(pair.b).T * pair.scale
                placed = tuple(one.to(model.device, model.dtype).contiguous() for one in (a, b))
                self._module(model, pair.module).pairs[name] = placed
                self.nbytes += sum(one.nbytes for one in placed)

    def _module(self, model: Any, name: str) -> Adapted:
        module = model.get_submodule(name)
        if not isinstance(module, Adapted):
            module = Adapted(module, self._selection)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module)
        return module

    def select(self, parts: Sequence[Part]) -> bool:
        """The next step computes these parts; whether any of them has an adapter."""
        ranges: dict[str, list[range]] = {}
        first = 0
        for part in parts:
            if (name := part.row.ticket.options.adapter) is not None:
                ranges.setdefault(name, []).append(range(first, first + part.count))
            first += part.count
        self._selection.tokens = first
        self._selection.places = [
            (name, None if sum(map(len, own)) == first else self._upload(own)) for name, own in ranges.items()
        ]
        return bool(ranges)

    def _upload(self, ranges: Sequence[range]) -> torch.Tensor:
        return torch.tensor([place for one in ranges for place in one], device=self._device)


def _require_base(adapter: Adapter, artifact: Artifact) -> None:
    """Refuse an adapter that says it was trained on other weights; warn of one that does not say."""
    told, source = adapter.trained_from, artifact.manifest.source
    if told is None:
        logger.warning(
            "%s does not say which weights it was trained on: it is added to those of %s, unchecked",
            adapter.path,
            artifact.manifest.name,
        )
    elif told["sha256"] != source.sha256:
        raise ArtifactError(
            f"{adapter.path} was trained on {told.get('name')} (sha256 {told['sha256'][:12]}…), and "
            f"{artifact.path} was made from {source.name} ({source.sha256[:12]}…): serve an artifact of its own base"
        )
