"""Keys and values of the rows, each row with a length of its own."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers.cache_utils import Cache

MIN_LENGTH_TOKENS = 128


class Slots(Cache):  # type: ignore[misc]
    """Keys and values as tensors (rows, kv_heads, length, head_dim), two a layer.

    They grow by doubling, up to `max_rows` x `max_length`. What lies beyond a row's own tokens is finite
    and never attended to. Belongs to one thread; another may read `held_bytes`.
    """

    def __init__(self, max_rows: int, max_length: int) -> None:
        super().__init__(layers=[])  # the models only call `update`
        self._max_rows, self._max_length = max_rows, max_length
        self.clear()

    def clear(self) -> None:
        """Forget everything and release the memory."""
        self._tensors: list[torch.Tensor] = []  # keys and values of layer 0, of layer 1, ...
        self.rows = self._length = 0

    @property
    def held_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.nbytes for tensor in list(self._tensors))

    def reserve(self, rows: int, length: int) -> None:
        """Make room for at least `rows` rows and `length` positions. After a failure what is held is still there."""
        if rows > self.rows or length > self._length:
            rows = max(self.rows, min(self._max_rows, _power_of_two(rows)))
            length = max(self._length, min(self._max_length, _power_of_two(max(length, MIN_LENGTH_TOKENS))))
            for index, tensor in enumerate(self._tensors):  # one after the other: only one is there twice
                self._tensors[index] = _grown(tensor, rows, length)
            self.rows, self._length = rows, length

    def select(self, slots: Sequence[int], positions: torch.Tensor, length: int) -> torch.Tensor:
        """Say which rows and positions the next forward computes, within what is reserved.

        `positions` (rows, tokens) are those of the rows in `slots`, which rise, all below `length`.
        Returns the attention mask (rows, 1, tokens, length): each token sees its own row up to itself.
        """
        device = positions.device
        self._read = (_places(slots, device), slice(None), slice(length))
        # `scatter_` would be as short, but in bfloat16 on a CPU it copies the whole tensor.
        self._written = (torch.tensor(slots, device=device)[:, None], slice(None), positions)
        return torch.arange(length, device=device) <= positions[:, None, :, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the model in each layer: keep the new keys and values, return those to attend to."""
        if 2 * layer_idx == len(self._tensors):
            # Zeros, as `wipe` leaves them.
            self._tensors += [
                new.new_zeros((self.rows, new.shape[1], self._length, new.shape[3]))
                for new in (key_states, value_states)
            ]
        keys, values = self._tensors[2 * layer_idx : 2 * layer_idx + 2]
        keys[self._written] = key_states.transpose(1, 2)
        values[self._written] = value_states.transpose(1, 2)
        return keys[self._read], values[self._read]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another."""
        for tensor in self._tensors:
            tensor[target, :, :length] = tensor[source, :, :length]

    def wipe(self, row: int, start: int) -> None:
        """Zero a row from `start` on: a masked position still multiplies, and half precision can overflow."""
        for tensor in self._tensors:
            tensor[row, :, start:] = 0


def _places(slots: Sequence[int], device: torch.device) -> slice | torch.Tensor:
    """An index of rows: without a copy where they are evenly spaced, as one or two always are."""
    steps = {second - first for first, second in pairwise(slots)} or {1}
    if len(steps) == 1:
        return slice(slots[0], slots[-1] + 1, steps.pop())
    return torch.tensor(slots, device=device)


def _grown(tensor: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    old_rows, heads, old_length, dimension = tensor.shape
    grown = tensor.new_zeros((max(rows, old_rows), heads, max(length, old_length), dimension))
    grown[:old_rows, :, :old_length] = tensor
    return grown


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
