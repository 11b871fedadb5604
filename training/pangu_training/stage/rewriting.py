"""New weight files from a checkpoint's: by the same names and in the same files, some weights changed on the way.

A change is computed in float32 and rounded once, to the type that is stored. One block is in memory at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.finite import all_finite
from pangu_training.stage.identity import tensors_by_file
from pangu_training.stage.tensors import COMPUTED, FLOATING, StoredTensor, header_of, stored_type

BLOCK_BYTES = 16 << 20

# A block of a weight in float32, from the row of that number on -> the block that takes its place, in float32.
Change = Callable[[torch.Tensor, int], torch.Tensor]
# Makes the change of one weight; what it reads for that is dropped with it.
Changes = Mapping[str, Callable[[], Change]]  # by the names of the stored tensors


@dataclass(slots=True)
class Rounding:
    """How much of what changed is still there after rounding."""

    wanted: float = 0.0  # the squares of all changes
    kept: float = 0.0  # the products of the changes with what became of them

    @property
    def share(self) -> float:
        """1 when nothing is lost, about 0 when the changes are smaller than the steps of the stored type."""
        return self.kept / self.wanted if self.wanted else 1.0

    def add(self, old: torch.Tensor, new: torch.Tensor, rounded: torch.Tensor) -> None:
        """Count a block: as it was, as it should be, and as it is stored; the first two in float32."""
        change = new - old
        self.wanted += float(change.double().square().sum())
        self.kept += float((change.double() * (rounded.double() - old.double())).sum())


def rewrite_weights(
    base: Checkpoint, folder: Path, changes: Changes, dtype: str | None = None, hint: str = ""
) -> Rounding:
    """Write the weight files of `base` into `folder`, floating-point tensors as `dtype` (None: as they are stored).

    Raises:
        CheckpointError: a number is not finite in the stored type; the message ends with `hint`.
    """
    rounding = Rounding()
    files = tensors_by_file(base)
    with tqdm(
        total=base.weight_bytes, desc="writing weights", unit="B", unit_scale=True, delay=1, disable=None
    ) as bar:
        for file in base.weight_files:
            tensors = files.get(file.name, [])
            types = {tensor.name: _type_of(tensor, dtype) for tensor in tensors}
            with file.open("rb") as source, (folder / file.name).open("wb") as target:
                target.write(header_of((one.name, types[one.name], one.shape) for one in tensors))
                for tensor in tensors:
                    make = changes.get(tensor.name)
                    change = make() if make else None
                    if change is None and types[tensor.name] == tensor.dtype:
                        _copy(tensor, source, target, bar)
                    else:
                        _write(tensor, source, target, types[tensor.name], change, rounding, bar, hint)
    return rounding


def _type_of(tensor: StoredTensor, dtype: str | None) -> str:
    """As safetensors spells it. What is not a floating-point number stays what it is."""
    return tensor.dtype if dtype is None or tensor.dtype not in FLOATING else stored_type(dtype)


def _copy(tensor: StoredTensor, source: IO[bytes], target: IO[bytes], bar: "tqdm[Any]") -> None:
    source.seek(tensor.start)
    left = tensor.num_bytes
    while left:
        block = source.read(min(left, BLOCK_BYTES))
        target.write(block)
        left -= len(block)
        bar.update(len(block))


def _write(
    tensor: StoredTensor,
    source: IO[bytes],
    target: IO[bytes],
    stored: str,
    change: Change | None,
    rounding: Rounding,
    bar: "tqdm[Any]",
    hint: str,
) -> None:
    for start, block in _blocks(tensor, source):
        old = block.float()
        new = old if change is None else change(old, start)
        rounded = new.to(getattr(torch, FLOATING[stored])).contiguous()
        if not COMPUTED.search(tensor.name) and not all_finite(rounded):
            raise CheckpointError(f"{tensor.name} would hold NaN or infinity as {FLOATING[stored]}{hint}")
        if change is not None:
            rounding.add(old, new, rounded)
        target.write(rounded.view(-1).view(torch.uint8).numpy().data)
        bar.update(block.nbytes)


def _blocks(tensor: StoredTensor, source: IO[bytes]) -> Iterator[tuple[int, torch.Tensor]]:
    """Its rows in order, some at a time: the number of the first, and the rows, [rows, …]."""
    rows, *rest = tensor.shape or (1,)
    row_bytes = tensor.num_bytes // rows if rows else 0
    step = max(1, BLOCK_BYTES // row_bytes) if row_bytes else max(1, rows)
    for start in range(0, rows, step):
        source.seek(tensor.start + start * row_bytes)
        count = min(step, rows - start)
        numbers = bytearray(source.read(count * row_bytes))
        block = torch.frombuffer(numbers, dtype=getattr(torch, FLOATING[tensor.dtype]))
        yield start, block.view(count, *rest) if tensor.shape else block.view(())
