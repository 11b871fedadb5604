"""Results of one artifact as JSON lines, appended while measuring, so that an interrupted run goes on where it was.

    {"kind": "configuration", "hash": "...", "configuration": {...}}    first line: everything that shapes the rows
    {"kind": "generation", "task_id": "HumanEval/0", ...}               then one line a row, in any order

A writer that is killed leaves at most one unfinished line, which the next writer cuts off. Rows measured under
another configuration are never mixed in.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar, get_args

from pangu_training.stage.errors import PanguError
from pangu_training.stage.line_file import LineFile, whole_lines

FIRST_BYTES = b'{"kind": "configuration", '


class RowsError(PanguError):
    """A result file is damaged, in use, or from another configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRow:
    """An answer of the model, as it came."""

    kind: ClassVar[str] = "generation"
    key_fields: ClassVar[tuple[str, ...]] = ("suite", "style", "task_id", "sample")
    suite: str
    style: str
    task_id: str
    sample: int
    answer: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """What became of a program; `outcome` is the sandbox's word. The gold solution's row has the style `gold`."""

    kind: ClassVar[str] = "verdict"
    key_fields: ClassVar[tuple[str, ...]] = ("suite", "style", "task_id", "sample")
    suite: str
    style: str
    task_id: str
    sample: int
    passed: bool
    outcome: str
    detail: str
    program: str
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRow:
    """One timed request of `completion_tokens` = n tokens; `itl_seconds` are its n - 1 gaps between tokens.

    There are fewer gaps when the first tokens have no text, see latency.py.
    """

    kind: ClassVar[str] = "latency"
    key_fields: ClassVar[tuple[str, ...]] = ("concurrency", "prompt_tokens", "request")
    concurrency: int
    prompt_tokens: int
    request: int
    completion_tokens: int
    ttft_seconds: float
    itl_seconds: tuple[float, ...]

    @property
    def tpot_seconds(self) -> float | None:
        """Time per output token after the first: (last token's time - first's) / (n - 1); None without a gap."""
        return sum(self.itl_seconds) / len(self.itl_seconds) if self.itl_seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """A reading of `meter` (see memory.py) in `phase`: `loading` and `generating` are peaks, `loaded` is not."""

    kind: ClassVar[str] = "memory"
    key_fields: ClassVar[tuple[str, ...]] = ("phase", "meter", "context_tokens")
    phase: str
    meter: str
    context_tokens: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRow:
    """A start of the server: what ran, where, and how long it took until it answered, hashes checked."""

    kind: ClassVar[str] = "served"
    key_fields: ClassVar[tuple[str, ...]] = ("started_at",)
    started_at: str
    load_seconds: float
    device: str
    backend: str
    engine: str
    compute_type: str
    kernel: str | None
    weight_bytes: int
    copy_bytes_per_second: float | None  # of the memory that holds the weights, where it could be measured
    environment: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRow:
    """`requests` requests, `concurrency` at a time, took `seconds` from the first one's start to the last one's end."""

    kind: ClassVar[str] = "load"
    key_fields: ClassVar[tuple[str, ...]] = ("concurrency",)
    concurrency: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeystrokeRow:
    """The request after a keystroke. Tokens are None where the server did not tell, as for one that was cancelled."""

    kind: ClassVar[str] = "keystroke"
    key_fields: ClassVar[tuple[str, ...]] = ("file_tokens", "keystroke")
    file_tokens: int
    keystroke: int  # 0: the file was opened
    waited: bool  # planned so; else the next keystroke came after a pause
    cancelled: bool  # it came before the end of the answer
    accepted: bool
    prompt_tokens: int | None
    cached_tokens: int | None  # of the prompt
    completion_tokens: int  # received
    ttft_seconds: float | None  # to the first text; None: cancelled before
    seconds: float  # to the end, or until it was cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class EditorRow:
    """A file that was typed into; `server_` is what its own counters moved meanwhile, None where it has none."""

    kind: ClassVar[str] = "editor"
    key_fields: ClassVar[tuple[str, ...]] = ("file_tokens",)
    file_tokens: int
    text: str  # whose beginning the file is
    counted: bool  # by the model's tokenizer, else guessed from characters
    fim: str  # how the server was asked
    seconds: float
    server_prompt_tokens: int | None
    server_cached_tokens: int | None  # of these
    server_generated_tokens: int | None
    server_cancelled: int | None


Row = GenerationRow | VerdictRow | LatencyRow | MemoryRow | ServedRow | LoadRow | KeystrokeRow | EditorRow
RowType = TypeVar(
    "RowType",
    GenerationRow,
    VerdictRow,
    LatencyRow,
    MemoryRow,
    ServedRow,
    LoadRow,
    KeystrokeRow,
    EditorRow,
)
ROW_TYPES: Mapping[str, type[Row]] = {row.kind: row for row in get_args(Row)}


def key_of(row: Row) -> tuple[object, ...]:
    """What makes a row one of a kind; a second row with it is a repetition."""
    return (row.kind, *(getattr(row, name) for name in row.key_fields))


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """SHA-256 of the configuration as canonical JSON."""
    text = json.dumps(configuration, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_rows(path: Path) -> tuple[Mapping[str, Any], list[Row]]:
    """The configuration and the rows of a result file; an unfinished last line is left out.

    Raises:
        RowsError: the file is missing, damaged, or no result file.
    """
    configuration, rows = _parse(path, path.read_bytes() if path.is_file() else b"")
    if configuration is None:
        raise RowsError(f"{path} holds no results: measure first")
    return configuration, rows


class RowFile:
    """A result file open for appending, locked against other writers; made, or gone on with.

    Raises:
        LineFileError: another process has the file.
        RowsError: it is damaged, or is from another configuration.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any]) -> None:
        self._file = LineFile(path)
        try:
            self.rows = self._go_on(path, configuration)
        except BaseException:
            self._file.close()
            raise
        self._keys = {key_of(row) for row in self.rows}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def has(self, row_type: type[Row], *key: object) -> bool:
        """Whether there is a row of `row_type` whose key fields are `key`."""
        return (row_type.kind, *key) in self._keys

    def append(self, row: Row) -> None:
        """Add `row`; its key must be new."""
        if key_of(row) in self._keys:
            raise ValueError(f"there is a row {key_of(row)} already")
        self._file.append({"kind": row.kind, **asdict(row)})
        self._keys.add(key_of(row))
        self.rows.append(row)

    def of(self, row_type: type[RowType]) -> list[RowType]:
        """The rows of one type, in the order of the file."""
        return [row for row in self.rows if isinstance(row, row_type)]

    def _go_on(self, path: Path, configuration: Mapping[str, Any]) -> list[Row]:
        configuration = json.loads(json.dumps(configuration))  # as it will be read: tuples become lists
        found, rows = _parse(path, path.read_bytes())
        if found is not None and found != configuration:
            names = sorted(
                name for name in {*found, *configuration} if found.get(name) != configuration.get(name)
            )
            raise RowsError(
                f"{path} was measured with another {', '.join(names)}: choose another output, or remove the file"
            )
        self._file.cut()
        if found is None:
            digest = configuration_hash(configuration)
            self._file.append({"kind": "configuration", "hash": digest, "configuration": configuration})
        return rows


def _parse(path: Path, data: bytes) -> tuple[Mapping[str, Any] | None, list[Row]]:
    """The configuration and the rows in the whole lines of `data`."""
    if not data.startswith(FIRST_BYTES[: len(data)]):
        raise RowsError(f"{path} is not a result file: choose another output")
    configuration: Mapping[str, Any] | None = None
    rows: list[Row] = []
    for number, line in enumerate(whole_lines(data).splitlines(), start=1):
        try:
            value = json.loads(line)
            if number == 1:
                configuration = value["configuration"]
                if configuration_hash(value["configuration"]) != value["hash"]:
                    raise ValueError("its hash is wrong")
            else:
                rows.append(_row(value))
        except (ValueError, KeyError, TypeError) as error:
            raise RowsError(
                f"{path} line {number} is damaged ({error}): remove that line, or the file"
            ) from None
    return configuration, rows


def _row(value: dict[str, Any]) -> Row:
    row_type = ROW_TYPES[value.pop("kind")]
    names = {field.name for field in fields(row_type)}
    if value.keys() != names:
        raise ValueError(f"its fields differ in {', '.join(sorted(value.keys() ^ names))}")
    arguments: dict[str, Any] = {
        name: tuple(item) if isinstance(item, list) else item for name, item in value.items()
    }
    return row_type(**arguments)
