"""What a CTranslate2 `model.bin` holds and where: names, types, shapes. Standard library only; reads no weights.

The format (`ctranslate2/specs/model_spec.py`): a version, the specification's name and revision; each variable with its
name, shape, type, size and bytes; then names that stand for a variable of the same content.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pangu_convert.artifact import ArtifactError
from pangu_training.stage.files import is_there
from pangu_training.stage.tensors import MOST_SIZES, MOST_TENSORS

MODEL_BIN = "model.bin"
VERSION = 6
# A type's place here is its number in the file.
ITEM_BYTES = {"float32": 4, "int8": 1, "int16": 2, "int32": 4, "float16": 2, "bfloat16": 2}
NUMBER_FORMATS = {"float32": "f", "int8": "b", "int16": "h", "int32": "i"}  # as `struct` spells them


@dataclass(frozen=True, slots=True, kw_only=True)
class BinVariable:
    """Where a variable lies in the file, in row-major order and little-endian."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]  # () for a single number
    offset: int  # in bytes, from the start of the file; not aligned to anything
    number: float | None = None  # the single number

    @property
    def num_bytes(self) -> int:
        """How long it is."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBin:
    """The variables of a file by their names, and names that stand for others."""

    path: Path
    specification: str
    revision: int
    variables: Mapping[str, BinVariable]
    aliases: Mapping[str, str]

    def target(self, name: str) -> str:
        """The variable that `name` stands for, which may be itself."""
        return self.aliases.get(name, name)

    def __contains__(self, name: str) -> bool:
        return self.target(name) in self.variables

    def number(self, name: str) -> float:
        """The single number `name`; `ArtifactError` when there is none."""
        number = self.variable(name).number
        if number is None:
            raise ArtifactError(f"{name} in {self.path} is not a number: convert the checkpoint again")
        return number

    def variable(self, name: str) -> BinVariable:
        """What `name` stands for; `ArtifactError` when the file has no such name."""
        variable = self.variables.get(self.target(name))
        if variable is None:
            raise ArtifactError(f"{self.path} has no variable {name}: convert the checkpoint again")
        return variable


def read_model_bin(path: Path) -> ModelBin:
    """Read the table of the file at `path`.

    Raises:
        ArtifactError: it is cut short, damaged, or of another version than this program reads.
    """
    try:
        if not is_there(path):
            raise ValueError("it is not there")
        with path.open("rb") as file:
            return _parse(path, file)
    except (OSError, struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged or cut short ({error}): convert the checkpoint again"
        ) from None


def _parse(path: Path, file: IO[bytes]) -> ModelBin:
    def unpacked(form: str) -> Any:
        [value] = struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))
        return value

    def text() -> str:
        value: bytes = unpacked(f"{unpacked('H')}s")
        return value[:-1].decode()

    def few(count: int, most: int) -> int:
        if count > most:
            raise ValueError(f"it has {count} of what no model has more than {most}")
        return count

    dtypes = list(ITEM_BYTES)
    version = unpacked("I")
    if version != VERSION:
        raise ArtifactError(
            f"{path} is of CTranslate2's format {version}, this program reads {VERSION}: convert the checkpoint again"
        )
    specification, revision = text(), unpacked("I")
    variables = {}
    for _ in range(few(unpacked("I"), MOST_TENSORS)):
        name = text()
        shape = tuple(unpacked("I") for _ in range(few(unpacked("B"), MOST_SIZES)))
        dtype, num_bytes = dtypes[unpacked("B")], unpacked("I")
        variable = BinVariable(dtype=dtype, shape=shape, offset=file.tell())
        if num_bytes != variable.num_bytes:
            raise ValueError(f"{name} has {num_bytes} bytes, not {variable.num_bytes}")
        if not shape and dtype in NUMBER_FORMATS:
            variable = replace(variable, number=unpacked(NUMBER_FORMATS[dtype]))
        else:
            file.seek(num_bytes, 1)
        variables[name] = variable
    aliases = {text(): text() for _ in range(few(unpacked("I"), MOST_TENSORS))}
    if file.read(1):
        raise ValueError("it goes on after its end")
    return ModelBin(
        path=path, specification=specification, revision=revision, variables=variables, aliases=aliases
    )
