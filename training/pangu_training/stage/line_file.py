"""JSON lines that grow while work is done, and that a killed writer leaves good: all the state of a long command.

A writer holds a lock for as long as it lives. A line goes to the operating system at once: a killed process
loses nothing, a power cut can. The line that a kill cut short is cut off by the next writer.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pangu_training.stage.errors import PanguError


class LineFileError(PanguError):
    """A file of JSON lines is damaged or in use."""


class LineFile:
    """A file of JSON lines open for appending, made if need be.

    Raises:
        LineFileError: another process has the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise LineFileError(f"another process is writing {path}: wait for it or stop it") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def cut(self) -> bytes:
        """The whole lines that are there; an unfinished last one is cut off."""
        data = whole_lines(self.path.read_bytes())
        os.ftruncate(self._descriptor, len(data))
        return data

    def append(self, row: Mapping[str, Any]) -> None:
        """Write `row` as a line."""
        data = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]


def whole_lines(data: bytes) -> bytes:
    """`data` without an unfinished last line."""
    return data[: data.rfind(b"\n") + 1]


class Journal:
    """Finished work by key, in a `LineFile`: a command that is run again does only what is missing.

    A row's `key` is the hash of everything the row was made from (`key_of`). Rows of other options may lie
    in the same file: they have other keys, and nobody asks for them.

    Raises:
        LineFileError: another process has the file, or a line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path)
        try:
            self.rows = {row["key"]: row for row in read_lines(path, self._file.cut(), _with_key)}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep `row` under `key`."""
        line = {"key": key, **row}
        self._file.append(line)
        self.rows[key] = line


def key_of(*made_from: object) -> str:
    """SHA-256 of JSON values, shortened to 24 hexadecimal digits."""
    text = json.dumps(made_from, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read_lines(
    path: Path, data: bytes, check: Callable[[dict[str, Any]], None] = lambda row: None
) -> list[dict[str, Any]]:
    """The rows in `data`, which `path` holds; `check` raises ValueError for a row that is wrong.

    Raises:
        LineFileError: names the line.
    """
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not a JSON object")
            check(row)
        except ValueError as error:
            raise LineFileError(
                f"{path} line {number} is damaged ({error}): remove that line, or the file"
            ) from None
        rows.append(row)
    return rows


def _with_key(row: dict[str, Any]) -> None:
    if not isinstance(row.get("key"), str):
        raise ValueError("it has no key")
