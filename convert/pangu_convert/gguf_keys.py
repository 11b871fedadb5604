"""The keys of a GGUF file, each taken by what understands it; a key that nothing has taken is refused by name."""

import math
import re
from collections.abc import Mapping
from typing import Any

from pangu_convert.gguf_file import GgufFile
from pangu_training.stage.errors import CheckpointError

# Larger than any model's width or vocabulary; products of two still fit what torch can count.
MAX_SIZE = 1 << 24
# They say where the file comes from, not what the model computes.
IGNORABLE = re.compile(
    r"general\.(?!architecture$|type$|file_type$|quantization_version$).*"
    r"|quantize\.imatrix\..*"
    r"|tokenizer\.chat_template\..+|tokenizer\.chat_templates"  # a tool's templates, next to the default one
    r"|tokenizer\.huggingface\.json"  # the same vocabulary a second time
    r"|tokenizer\.ggml\.token_type_count"
    r"|.+\.rope\.scaling\.finetuned"
)


class GgufKeys:
    """Takes keys out of a file; `require_empty` then says what was left."""

    def __init__(self, file: GgufFile) -> None:
        self.name = file.parts[0].name
        self._left = dict(file.keys)

    def text(self, key: str, default: str | None = None) -> str | None:
        """A text, `default` when the file has no such key."""
        value = self._left.pop(key, default)
        if value is not None and not isinstance(value, str):
            raise self.refused(key, value, "a text")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive number of things; without a default the key is required."""
        value = self._number(key, default)
        if not isinstance(value, int) or not 0 < value <= MAX_SIZE:
            raise self.refused(key, value, f"a number from 1 to {MAX_SIZE}")
        return value

    def real(self, key: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A finite number over `least`; without a default the key is required."""
        value = self._number(key, default)
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= least:
            raise self.refused(key, value, f"a number over {least:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._left.pop(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, value, "true or false")
        return value

    def items(self, key: str, kind: type) -> list[Any]:
        """A list of `kind`, empty when the file has no such key."""
        value = self._left.pop(key, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise self.refused(key, value, f"a list of {kind.__name__}")
        return list(value)

    def token(self, key: str, vocabulary_size: int) -> int | None:
        """A token's id, None when the file names none."""
        value = self._left.pop(key, None)
        if value is not None and (type(value) is not int or not 0 <= value < vocabulary_size):
            raise self.refused(key, value, f"a token id from 0 to {vocabulary_size - 1}")
        return value

    def known(self, key: str, names: Mapping[int, str]) -> str | None:
        """The name of a number, None when the file has no such key."""
        value = self._left.pop(key, None)
        if value is not None and (type(value) is not int or value not in names):
            raise self.refused(key, value, f"one of {', '.join(map(str, names))}")
        return None if value is None else names[value]

    def neutral(self, key: str, *values: Any) -> None:
        """A key that changes what the model computes unless it is one of `values`."""
        value = self._left.pop(key, None)
        if value is not None and value not in values:
            allowed = " or ".join(map(repr, values))
            raise self.refused(key, value, f"absent or {allowed}: nothing here computes more")

    def require_empty(self) -> None:
        """Refuse the file for a key that was not taken and that cannot be ignored."""
        for key in self._left:
            if not IGNORABLE.fullmatch(key):
                raise CheckpointError(
                    f"{self.name} has the key {key}, which is not understood here and may change what the model "
                    "computes: import the model's Hugging Face folder instead"
                )

    def refused(self, key: str, value: Any, wanted: str) -> CheckpointError:
        """The refusal of a value."""
        shown = "missing" if value is None else repr(value)
        return CheckpointError(f"{self.name}: {key} is {shown[:60]}, and should be {wanted}")

    def _number(self, key: str, default: float | None) -> Any:
        value = self._left.pop(key, default)
        return None if isinstance(value, bool) else value
