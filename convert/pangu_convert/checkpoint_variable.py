"""A weight that stays in its checkpoint file, as CTranslate2's loaders and specification take it.

Knows where a tensor lies and how to read some of its rows. Does not know what becomes of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from ctranslate2.specs.model_spec import Variable

from pangu_convert.weights import open_weights
from pangu_training.stage.tensors import StoredTensor

BLOCK_BYTES = 4 << 20  # small enough for the processor's cache
HEAD_ELEMENTS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """What the rows and columns of a weight of shape [R, C], or the elements of a vector [R], are multiplied by."""

    rows: torch.Tensor | None = None  # [R]
    columns: torch.Tensor | None = None  # [C]

    def applied(self, block: torch.Tensor, start: int) -> torch.Tensor:
        """`block` holds the weight's rows from `start`."""
        if self.rows is not None:
            part = self.rows[start : start + len(block)].to(block.dtype)
            block = block * part.reshape(-1, *[1] * (block.dim() - 1))
        return block if self.columns is None else block * self.columns.to(block.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """A stored tensor, and what it is multiplied by when it is read."""

    stored: StoredTensor
    factors: Factors = field(default_factory=Factors, compare=False)  # they depend on the name

    @property
    def name(self) -> str:
        """What the checkpoint calls it."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.stored.shape

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop`, read now.

        The file is closed again at once: as long as it is open, each page that was read from it counts as
        memory of this process.
        """
        with open_weights(self.stored.file) as weights:
            return self.factors.applied(weights.get_slice(self.name)[start:stop], start)


class CheckpointVariable(Variable):  # type: ignore[misc]
    """One or several stored tensors, one below the other, to be read as `dtype`.

    Takes the place of a module's parameter, so that a loader of CTranslate2 moves and concatenates the name of a
    weight instead of the weight. `torch.cat` is all they do with one; whatever else fails loudly.
    """

    def __init__(self, parts: Sequence[WeightSource], dtype: torch.dtype) -> None:
        self.parts = tuple(parts)
        self.torch_dtype = dtype

    @classmethod
    def __torch_function__(
        cls, function: Any, _types: object, arguments: Any = (), keywords: Any = None
    ) -> Self:
        if function is not torch.cat or keywords:
            raise NotImplementedError(f"{function.__name__} of a weight is not known to this program")
        (variables,) = arguments
        return cls([part for variable in variables for part in variable.parts], variables[0].torch_dtype)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """A fresh copy of rows `start` to `stop` (less at the end) in the variable's type."""
        pieces = []
        for part in self.parts:
            count = part.shape[0]
            if start < count and stop > 0:
                pieces.append(part.rows(max(start, 0), min(stop, count)))
            start, stop = start - count, stop - count
        return torch.cat(pieces).to(self.torch_dtype)

    def blocks(self, *, one: bool = False) -> Iterator[tuple[slice, torch.Tensor]]:
        """The variable in order, rows of about `BLOCK_BYTES` at a time, or all rows as `one` block."""
        num_rows = self.shape[0]
        step = num_rows if one else max(1, BLOCK_BYTES * num_rows // self.num_bytes())
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            yield slice(start, stop), self.rows(start, stop)

    @cached_property
    def _head(self) -> tuple[float, ...]:
        """The first elements: enough to tell most weights apart without reading all of them."""
        return tuple(self.rows(0, HEAD_ELEMENTS).flatten()[:HEAD_ELEMENTS].tolist())

    # What follows is CTranslate2's `Variable`.

    @property
    def shape(self) -> list[int]:
        first, *_ = self.parts
        return [sum(part.shape[0] for part in self.parts), *first.shape[1:]]

    @property
    def dtype(self) -> str:
        return str(self.torch_dtype).removeprefix("torch.")

    def num_bytes(self) -> int:
        return int(torch.Size(self.shape).numel() * self.torch_dtype.itemsize)

    def _equal(self, other: Self) -> bool:
        """As `torch.equal`: 0 equals -0."""
        if self.shape != other.shape:
            return False
        if self.parts == other.parts:
            return True
        return self._head == other._head and all(
            torch.equal(block, other.rows(rows.start, rows.stop)) for rows, block in self.blocks()
        )

    def numpy(self) -> Any:
        raise NotImplementedError

    def to_bytes(self) -> Any:
        raise NotImplementedError

    def _to(self, dtype: str) -> Any:
        raise NotImplementedError
