"""Reading small files that anybody may have made: no file makes the reader wait, loop, or take much memory.

Standard library only. What is wrong comes as `ValueError` in a few words; whoever reads says what to do next.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 16 << 20  # of JSON: the index of a model with 100,000 tensors has 9 MB
MOST_VALUES = 1 << 20  # in it; each takes a hundred bytes of memory
MOST_TOKENIZER_BYTES = 64 << 20  # the largest tokenizer.json have 35 MB
HUB_BLOBS = "blobs"  # a hub cache's snapshots/COMMIT/NAME are links to ../../blobs/HASH


def is_there(path: Path) -> bool:
    """Whether `path` is a file, or a link to one.

    Raises:
        ValueError: it is something else: a folder, a pipe, a device, a link that leads nowhere.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise ValueError("it is a link that leads nowhere") from None
        return False
    except OSError as error:
        raise ValueError(error.strerror) from None
    if not stat.S_ISREG(mode):
        raise ValueError("it is not a file")
    return True


def require_inside(path: Path) -> None:
    """Raise `ValueError` if `path` is a link out of its folder, other than into the hub cache that the folder is of.

    What is read through such a link would end up in files that are given to others.
    """
    if not path.is_symlink():
        return
    target, folder = path.resolve(), path.parent.resolve()
    if not target.is_relative_to(folder) and target.parent != folder.parent.parent / HUB_BLOBS:
        raise ValueError(f"it is a link to {target}, outside its folder: put a copy there if that is meant")


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """What the file at `path` holds.

    Raises:
        ValueError: it has more than `most_bytes`, or is not a file.
    """
    # A pipe that nobody writes would hold up a plain `open`.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a file")
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes >> 20} MB")
    return data


def read_value(path: Path) -> Any:
    """The JSON value in the file at `path`.

    Raises:
        ValueError: it holds none, one that is too large or nested too deep, or one that programs read differently: a
            key that is there twice, NaN, infinity.
    """
    return parse(read_bytes(path))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`; raises as `read_value`."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def parse(text: bytes) -> Any:
    """The JSON value in `text`; raises as `read_value`."""
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_not_json, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice[:60]!r} twice")
    return found


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _not_json(number[:60])


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
