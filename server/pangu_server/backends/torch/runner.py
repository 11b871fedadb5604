"""One forward of the model for a flat batch: the tokens of all rows one after the other, over the paged cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pangu_convert.artifact import ArtifactError
from pangu_server.backends.torch.attention import NAME, Paged, Probe, attending
from pangu_server.backends.torch.cache import FEW_TOKENS, PAGE_TOKENS, Flat, Heads, PagedCache, Segment
from pangu_server.backends.torch.device_choosing import upload
from pangu_server.backends.torch.rows import Part

GRAPH_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)  # sizes of captured steps
Select = Callable[[Sequence[Part]], bool]
UNREAD = -1  # in the place of a token that the device has chosen and the host has not read


def heads_of(model: Any) -> list[Heads]:
    """What each layer of `model` keeps of a token, learned from a forward of one token.

    Raises:
        ArtifactError: the model computes its attention in another way than by transformers' interface.
    """
    model.set_attn_implementation(NAME)
    probe = Probe()
    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.inference_mode(), attending(probe):
        model(input_ids=ids, position_ids=ids, use_cache=False, logits_to_keep=1)
    if sorted(probe.layers) != list(range(model.config.num_hidden_layers)):
        raise ArtifactError(f"{type(model).__name__} does not let the engine compute its attention")
    return [probe.layers[layer] for layer in range(len(probe.layers))]


class Tokens(NamedTuple):
    """A flat batch on the host: arrays (tokens,), and which logits it is for."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]  # see `Flat`
    slots: npt.NDArray[np.int64]
    few: npt.NDArray[np.bool_]  # of a row with up to FEW_TOKENS new ones
    segments: list[Segment]  # of the other rows
    kept: list[int]

    @classmethod
    def of(cls, parts: Sequence[Part], cache: PagedCache) -> "Tokens":
        """The tokens of these parts, whose rows have their pages in `cache`."""
        total = sum(part.count for part in parts)
        numbers = np.empty((4, total), np.int64)
        ids, positions, places, slots = numbers
        few, first = np.ones(total, np.bool_), 0
        segments: list[Segment] = []
        kept: list[int] = []
        for part in parts:
            row, start, count = part.row, part.start, part.count
            stop, own = start + count, slice(first, first + count)
            known = row.ticket.tokens[start : start + part.known]
            known += [UNREAD] * (part.known - len(known))
            ids[own], positions[own], slots[own] = [*known, *part.guesses], range(start, stop), row.slot
            pages = cache.tables[row.slot, positions[own] // PAGE_TOKENS].astype(np.int64)
            places[own] = pages * PAGE_TOKENS + positions[own] % PAGE_TOKENS
            if count > FEW_TOKENS:
                few[own] = False
                segments.append(cache.segment(first, count, stop, row.slot))
            kept += range(first + count - part.kept, first + count)
            first += count
        return cls(ids, positions, places, slots, few, segments, kept)


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """A step of one size as a CUDA graph."""

    graph: Any
    numbers: torch.Tensor  # int64 (4, tokens): what it reads
    logits: torch.Tensor  # (tokens, vocabulary): what it leaves


class Runner:
    """A transformers model over `cache`."""

    def __init__(self, model: Any, cache: PagedCache, select: Select = lambda parts: False) -> None:
        """`select` is told of the parts of each forward; whether any has an adapter, which no graph holds."""
        self.model, self.cache, self._select = model, cache, select
        self.device: torch.device = model.device
        self._captured: dict[int, _Captured] = {}
        self._chosen = torch.zeros(len(cache.tables), dtype=torch.long, device=self.device)

    def remember(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        """`tokens`, on the device, are the last of these slots: the next forward takes them where ids are UNREAD."""
        if self.cache.on_device:
            self._chosen.index_copy_(0, self._upload(np.array(slots, np.int64)), tokens)

    def forward(self, parts: Sequence[Part]) -> torch.Tensor:
        """Compute these parts of their rows, which have pages for them.

        Returns the logits (kept tokens, vocabulary) in the model's type, part after part.
        """
        tokens = Tokens.of(parts, self.cache)
        adapted = self._select(parts)
        if self.cache.on_device:
            return self._on_device(tokens, graphs=not adapted)
        few = np.flatnonzero(tokens.few)
        flat = Flat(
            places=torch.from_numpy(tokens.places),
            segments=tokens.segments,
            tokens=torch.from_numpy(few),
            slots=torch.from_numpy(tokens.slots[few]),
            visible=torch.from_numpy(tokens.positions[few] + 1),
        )
        ids, positions = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.positions)
        return self._logits(ids, positions, flat, torch.tensor(tokens.kept or [0]))

    def _logits(
        self, ids: torch.Tensor, positions: torch.Tensor, flat: Flat, kept: torch.Tensor | int
    ) -> torch.Tensor:
        with attending(Paged(self.cache, flat)):
            output = self.model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=kept
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    # ------------------------------------------------------------------ on a GPU

    def capture(self, most: int) -> None:
        """Capture steps of up to `most` tokens as CUDA graphs; `RuntimeError` where that does not work."""
        sizes = [size for size in GRAPH_TOKENS if size < most] + [most]
        pool = None
        with torch.inference_mode():
            for size in reversed(sizes):  # the largest first: the others fit into its memory
                numbers = torch.zeros((4, size), dtype=torch.long, device=self.device)
                numbers[2] = -1
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(2):
                        self._step(numbers)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    logits = self._step(numbers)
                pool = graph.pool()
                self._captured[size] = _Captured(graph, numbers, logits)

    def _step(self, numbers: torch.Tensor) -> torch.Tensor:
        """The logits of tokens that are all of rows with few new ones."""
        ids, positions, places, slots = numbers
        return self._logits(self._known(ids, slots), positions, self._flat(places, slots, positions), 0)

    def _known(self, ids: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return torch.where(ids < 0, self._chosen.index_select(0, slots), ids)

    def _flat(
        self,
        places: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        few: torch.Tensor | None = None,
        segments: Sequence[Segment] = (),
    ) -> Flat:
        if few is not None:
            slots, positions = slots.index_select(0, few), positions.index_select(0, few)
        return Flat(
            places=places,
            segments=segments,
            tokens=few,
            slots=slots,
            visible=(positions + 1).int(),
            tables=self.cache.rows(slots),
        )

    def _on_device(self, tokens: Tokens, *, graphs: bool) -> torch.Tensor:
        self.cache.update_tables()
        count = len(tokens.ids)
        numbers = np.stack(tokens[:4])
        size = (
            min((size for size in self._captured if size >= count), default=None)
            if graphs and not tokens.segments
            else None
        )
        if size is None:
            uploaded = self._upload(numbers)
            ids, positions, places, slots = uploaded
            few = self._upload(np.flatnonzero(tokens.few)) if tokens.segments else None
            flat = self._flat(places, slots, positions, few, tokens.segments)
            kept = self._upload(np.array(tokens.kept or [0]))
            return self._logits(self._known(ids, slots), positions, flat, kept)
        captured = self._captured[size]
        padded = np.zeros((4, size), np.int64)
        padded[2] = -1
        padded[:, :count] = numbers
        captured.numbers.copy_(self._upload(padded))
        captured.graph.replay()
        if tokens.kept == list(range(count)):
            return captured.logits[:count]
        return captured.logits.index_select(0, self._upload(np.array(tokens.kept or [0])))

    def _upload(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return upload(self.device, array)
