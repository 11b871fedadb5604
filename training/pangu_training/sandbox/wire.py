"""What crosses between judge and candidate: plain values as JSON, one message a line. No pickle, no eval.

Crossing: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, subclasses of these
as their base, and instances of the problem's own classes (`ListNode`) by their attributes, shared and cyclic
references kept. Anything else arrives as an `Opaque`, which equals nothing. The receiver builds every value
from its own types, so an object that lies about equality arrives as what it is.
"""

import json
import os
from collections.abc import Callable, Collection
from typing import Any

MAX_MESSAGE_BYTES = 32 << 20


class Opaque:
    """A value that cannot cross. It equals nothing, and nothing can be concluded from its truth."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name} object>"

    def __bool__(self) -> bool:
        raise TypeError(f"a {self.type_name} cannot be judged")


class WireError(Exception):
    """What arrived is not a message, or is longer than `MAX_MESSAGE_BYTES`."""


def encode(value: Any, records: Collection[str]) -> dict[str, Any]:
    """`value` as JSON data. Instances of classes named in `records` cross by their attributes."""
    pending: list[Any] = []  # records, numbered as they are met; a loop, as a linked list can be long
    numbers: dict[int, int] = {}

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, (bool, str, float)):
            return value
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**63 else {"i": hex(value)}
        if isinstance(value, list):
            return [plain(item) for item in value]
        for tag, kind in (("t", tuple), ("s", set), ("f", frozenset)):
            if isinstance(value, kind):
                return {tag: [plain(item) for item in value]}
        if isinstance(value, dict):
            return {"d": [[plain(key), plain(item)] for key, item in value.items()]}
        if isinstance(value, (bytes, bytearray)):
            return {"b": value.decode("latin-1")}
        if isinstance(value, complex):
            return {"c": [value.real, value.imag]}
        if type(value).__name__ in records:
            if id(value) not in numbers:
                numbers[id(value)] = len(pending)
                pending.append(value)
            return {"r": numbers[id(value)]}
        if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", None):
            return plain(value.item())
        return {"?": type(value).__name__}

    encoded, objects = plain(value), []
    for record in pending:  # it grows
        objects.append([type(record).__name__, {name: plain(item) for name, item in vars(record).items()}])
    return {"value": encoded, "objects": objects}


def decode(message: Any, find_class: Callable[[str], Any]) -> Any:
    """The value of a message of `encode`, built of this process's own types.

    Raises:
        WireError: it is not such a message.
    """
    try:
        return _decode(message, find_class)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise WireError(f"a malformed message ({type(error).__name__})") from None


def _decode(message: Any, find_class: Callable[[str], Any]) -> Any:
    objects = [object.__new__(find_class(name)) for name, _ in message["objects"]]

    def plain(data: Any) -> Any:
        if isinstance(data, list):
            return [plain(item) for item in data]
        if not isinstance(data, dict):
            return data
        ((tag, content),) = data.items()
        match tag:
            case "i":
                return int(content, 16)
            case "t":
                return tuple(plain(item) for item in content)
            case "s":
                return {plain(item) for item in content}
            case "f":
                return frozenset(plain(item) for item in content)
            case "d":
                return {plain(key): plain(item) for key, item in content}
            case "b":
                return content.encode("latin-1")
            case "c":
                return complex(*content)
            case "r":
                return objects[content]
            case "?":
                return Opaque(str(content))
        raise WireError(f"an unknown kind of value {tag!r}")

    for made, (_, attributes) in zip(objects, message["objects"], strict=True):
        vars(made).update({str(name): plain(item) for name, item in attributes.items()})
    return plain(message["value"])


class Channel:
    """Messages over two pipe ends."""

    def __init__(self, read_end: int, write_end: int) -> None:
        self._read_end, self._write_end = read_end, write_end
        self._buffer = bytearray()

    def send(self, message: Any) -> None:
        """Write one message. `BrokenPipeError` when the other side is gone, `WireError` when it is too long."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_MESSAGE_BYTES:
            raise WireError(f"a value of more than {MAX_MESSAGE_BYTES >> 20} MiB")
        view = memoryview(line)
        while view:
            view = view[os.write(self._write_end, view) :]

    def receive(self) -> Any:
        """The next message; `EOFError` when the other side is gone, `WireError` when it is none."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_MESSAGE_BYTES:
                raise WireError(f"a value of more than {MAX_MESSAGE_BYTES >> 20} MiB")
            block = os.read(self._read_end, 1 << 20)
            if not block:
                raise EOFError
            self._buffer += block
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WireError(f"a malformed message ({type(error).__name__})") from None
