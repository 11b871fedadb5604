"""Reading a GGUF file, in one part or many: every key and every tensor once, or a refusal that names it.

    "GGUF"  version  counts  keys: name, type, value  tensors: name, shape, type, offset  data

The format is llama.cpp's. A file is read as bytes that anybody may have made: no count in it makes the reader
loop or allocate beyond what the file itself holds. Tensor data stays on the disk until `GgufTensor.rows`.
"""

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.tensors import MOST_TENSORS

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType

PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MOST_VALUES = (
    1 << 22
)  # of all keys together: they are held in memory; a vocabulary and its merges have a million
MOST_HEADER_BYTES = 64 << 20
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT32, STRING, ARRAY = 6, 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """A tensor's place in its file; `shape` as torch has it, rows first."""

    name: str
    type: "GGMLQuantizationType"
    shape: tuple[int, ...]
    file: Path
    offset: int
    row_bytes: int

    @property
    def row_count(self) -> int:
        """Rows of the tensor seen as a matrix; a vector is one row."""
        count = 1
        for size in self.shape[:-1]:
            count *= size
        return count

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.row_count * self.shape[-1]

    def rows(self) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """The stored bytes, a row each, mapped from the disk."""
        import numpy as np

        shape = (self.row_count, self.row_bytes)
        return np.memmap(self.file, dtype=np.uint8, mode="r", offset=self.offset, shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """The keys and tensors of all parts."""

    parts: tuple[Path, ...]
    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of the GGUF file at `path`, and of the parts it belongs with.

    Raises:
        CheckpointError: not GGUF, damaged, a part is missing, or a name appears twice.
    """
    paths = _part_paths(path)
    keys: dict[str, Any] = {}
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(paths):
        part_keys, part_tensors = _read_part(part)
        count, place = part_keys.pop("split.count", 1), part_keys.pop("split.no", 0)
        if count != len(paths) or place != number:
            raise CheckpointError(
                f"{part.name} is part {_number(place)} of {count} by its own header: give all parts their first "
                "names, which end in -00001-of-0000N.gguf"
            )
        total = part_keys.pop("split.tensors.count", None)
        for name, value in part_keys.items():
            if name in keys and keys[name] != value:
                raise CheckpointError(
                    f"{part.name} and {paths[0].name} differ in {name}: download them again"
                )
            keys.setdefault(name, value)
        for tensor in part_tensors:
            if tensor.name in tensors:
                raise CheckpointError(f"{part.name} has the tensor {tensor.name} twice: download it again")
            tensors[tensor.name] = tensor
        if number == len(paths) - 1 and total not in (None, len(tensors)):
            raise CheckpointError(
                f"{part.name} says that the model has {total} tensors, but it has {len(tensors)}"
            )
    return GgufFile(parts=tuple(paths), keys=keys, tensors=tensors)


def _number(place: Any) -> Any:
    return place + 1 if isinstance(place, int) else place


def _part_paths(path: Path) -> list[Path]:
    named = PART_NAME.fullmatch(path.name)
    if named is None:
        return [path]
    stem, count = named[1], int(named[3])
    names = [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing or path.name not in names:
        lacking = f", and {missing[0]} is missing ({len(missing)} in all)" if missing else ""
        raise CheckpointError(
            f"{path.name} is one of {count} parts by its name{lacking}: put all parts into one folder"
        )
    return [path.with_name(name) for name in names]


def _read_part(path: Path) -> tuple[dict[str, Any], list[GgufTensor]]:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(
                f"{path} is not a GGUF file: give one, or the folder of a Hugging Face checkpoint"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, path)
            version = cursor.scalar("I")
            if version not in VERSIONS:
                raise CheckpointError(
                    f"{path.name} is GGUF version {version} or big-endian; read are versions "
                    f"{' and '.join(map(str, VERSIONS))}, little-endian"
                )
            tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
            if tensor_count > MOST_TENSORS:
                raise cursor.damaged(f"it has {tensor_count} tensors")
            keys: dict[str, Any] = {}
            for _ in range(cursor.some(key_count)):
                name = cursor.string()
                if name in keys:
                    raise CheckpointError(f"{path.name} has the key {name!r} twice: download it again")
                keys[name] = cursor.value(name)
            return keys, _tensors(cursor, tensor_count, keys.get("general.alignment", 32))


def _tensors(cursor: "_Cursor", count: int, alignment: Any) -> list[GgufTensor]:
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}")
    heads = []
    for _ in range(count):
        name, dimensions = cursor.string(), cursor.scalar("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise cursor.damaged(f"{name!r} has {dimensions} dimensions")
        shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
        heads.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    start = -(-cursor.position // alignment) * alignment
    tensors, expected = [], 0
    for name, shape, type_number, offset in heads:
        tensor_type, row_bytes = _row_bytes(cursor, name, shape, type_number)
        if offset != expected or min(shape) < 1:
            raise cursor.damaged(f"{name!r} of shape {list(shape)} lies at {offset}, not at {expected}")
        tensor = GgufTensor(
            name=name,
            type=tensor_type,
            shape=shape,
            file=cursor.path,
            offset=start + offset,
            row_bytes=row_bytes,
        )
        size = tensor.row_count * row_bytes
        if tensor.offset + size > len(cursor.data):
            raise cursor.damaged(f"it ends within {name!r}")
        tensors.append(tensor)
        expected += -(-size // alignment) * alignment
    return tensors


def _row_bytes(
    cursor: "_Cursor", name: str, shape: tuple[int, ...], type_number: int
) -> tuple["GGMLQuantizationType", int]:
    """A tensor's type, which must be one that can be de-quantized, and the size of one of its rows."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        tensor_type = GGMLQuantizationType(type_number)
        block, block_bytes = GGML_QUANT_SIZES[tensor_type]
        dequantize(np.zeros((1, block_bytes), dtype=np.uint8), tensor_type)
    except (ValueError, KeyError, NotImplementedError):
        raise CheckpointError(
            f"{cursor.path.name} stores {name!r} as type {type_number}, which gguf cannot de-quantize: import "
            "another quantization of the model"
        ) from None
    if shape[-1] % block:
        raise cursor.damaged(f"a row of {name!r} is not a number of whole {tensor_type.name} blocks")
    return tensor_type, shape[-1] // block * block_bytes


class _Cursor:
    """A place in a file's bytes that moves on with each value read."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position = data, path, 4
        self.values_left = MOST_VALUES

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or cut short ({what}): download it again")

    def bytes(self, size: int) -> bytes:
        end = self.position + size
        if end > min(len(self.data), MOST_HEADER_BYTES):
            raise self.damaged("it ends within its header, or that has no end")
        self.position, taken = end, self.data[self.position : end]
        return taken

    def some(self, count: int) -> int:
        """`count`, unless that is more than can be held."""
        self.values_left -= count
        if self.values_left < 0:
            raise self.damaged(f"it has more than {MOST_VALUES} values")
        return count

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        try:
            return self.bytes(self.scalar("Q")).decode()
        except UnicodeDecodeError:
            raise self.damaged("a text is not UTF-8") from None

    def value(self, name: str) -> Any:
        kind = self.scalar("I")
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self._numbers(name, kind, 1)[0]
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == STRING:
            return [self.string() for _ in range(self.some(count))]
        return self._numbers(name, kind, count)

    def _numbers(self, name: str, kind: int, count: int) -> list[Any]:
        code = SCALARS.get(kind)
        if code is None:
            raise self.damaged(f"{name!r} is of an unknown or nested type, {kind}")
        data = self.bytes(self.some(count) * struct.calcsize(code))
        numbers = list(struct.unpack(f"<{count}{code}", data))
        # The decimal number that the file's maker wrote: 1e-05, not 9.999999747378752e-06.
        return [_shortest(number) for number in numbers] if kind == FLOAT32 else numbers


def _shortest(number: float) -> float:
    import numpy as np

    return float(str(np.float32(number)))
