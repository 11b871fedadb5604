"""What safetensors files hold: the names, types, shapes and places of tensors. Standard library only; reads no numbers.

A file is eight bytes that give the length of its header, the header (a JSON object), and the tensors end to end.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.files import MOST_BYTES, is_there, parse

# As safetensors spells them, with torch's names; these are what weights can be.
FLOATING = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
BITS = re.compile(r"[A-Z]+(\d{1,3})(_\w+)?")  # of a type's name, as in BF16 and F8_E4M3
MOST_TENSORS = 1 << 18  # of a model; what they are is held in memory
MOST_SIZES = 8  # of a shape
# Older versions of transformers stored what is computed: rotary frequencies, attention masks, position numbers.
COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias|position_ids)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor of a checkpoint lies."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it
    start: int  # its first byte in the file
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of `files` by its name, in the order in which they lie there.

    Raises:
        CheckpointError: a header does not account for each byte of its file, a name is there twice, or there are more
            tensors than any model has.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _tensors(file):
            if tensor.name in found:
                raise CheckpointError(
                    f"{tensor.name} is in {found[tensor.name].file} and in {file.name}: download or export the "
                    "checkpoint again"
                )
            found[tensor.name] = tensor
        if len(found) > MOST_TENSORS:
            raise CheckpointError(f"{file} has more than {MOST_TENSORS} tensors: no model has")
    return found


def stored_type(dtype: str) -> str:
    """torch's name of a type of `FLOATING` as safetensors spells it."""
    return next(stored for stored, name in FLOATING.items() if name == dtype)


def header_of(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> bytes:
    """What a file begins with that holds these tensors in this order: name, type as safetensors spells it, shape."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * _bits(name, dtype) // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _tensors(file: Path) -> list[StoredTensor]:
    try:
        if not is_there(file):
            raise ValueError("it is not there")
        with file.open("rb") as stream:
            total = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= total - 8:
                raise ValueError("its header does not fit into it")
            if length > MOST_BYTES:
                raise ValueError(f"its header has more than {MOST_BYTES >> 20} MB")
            entries = parse(stream.read(length))
        tensors = [
            _tensor(file, 8 + length, name, fields)
            for name, fields in entries.items()
            if name != "__metadata__"
        ]
        tensors.sort(key=lambda tensor: tensor.start)
        end = 8 + length
        for tensor in tensors:
            if tensor.start != end:
                raise ValueError(f"{tensor.name} is not where the tensor before it ends")
            end += tensor.num_bytes
        if end != total:
            raise ValueError(f"it has {total} bytes and its header describes {end}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({error}): download or export it again"
        ) from None
    return tensors


def _tensor(file: Path, data: int, name: str, fields: Any) -> StoredTensor:
    """One entry of the header of `file`, whose tensors begin at byte `data`; `ValueError` where it makes no sense."""
    dtype, shape, (start, stop) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    if len(shape) > MOST_SIZES or not all(
        type(number) is int and number >= 0 for number in (*shape, start, stop)
    ):
        raise ValueError(f"{name} has a shape or place that makes no sense")
    if 8 * (stop - start) != math.prod(shape) * _bits(name, dtype):
        raise ValueError(f"{name} has {stop - start} bytes, which is not its shape's size")
    return StoredTensor(
        file=file, name=name, shape=shape, dtype=dtype, start=data + start, num_bytes=stop - start
    )


def _bits(name: str, dtype: str) -> int:
    """Of one number of the tensor `name`; `ValueError` where its type is none."""
    bits = BITS.fullmatch("BOOL8" if dtype == "BOOL" else dtype)
    if bits is None:
        raise ValueError(f"{name} is of an unknown type, {dtype}")
    return int(bits[1])
