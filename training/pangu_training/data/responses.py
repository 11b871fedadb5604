"""Responses: what `pangu-train sample` writes and `rank` reads. JSONL, one row a response, in the order they came.

    {"key": "6a0c…", "problem": "own/1", "role": "student", "source": "mine", "model": "starcoder-int8",
     "style": "pangu", "temperature": 0.2, "sample": 0, "text": "def add(a, b): …", "finish_reason": "stop",
     "prompt_tokens": 31, "completion_tokens": 40, "seconds": 1.2}

`text` is the answer as it came. A response that came with its problem has the style `recorded`, is a program already,
and has null for what only a request has. Other fields are allowed and left alone. Standard library only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pangu_training.stage.errors import DataError
from pangu_training.stage.line_file import read_lines

STUDENT, TEACHER = "student", "teacher"
RECORDED = "recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response, and how it was drawn. `key` is the hash of everything it was made from.

    `sample` counts the responses of one source to one problem at one temperature. A server counts the tokens of a
    request, which may be for several responses: `completion_tokens` is this one's share by length; `seconds` is the
    request's.
    """

    key: str
    problem: str
    role: str
    source: str
    model: str | None
    style: str
    temperature: int | float | None
    sample: int
    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: int | float | None


TYPES: dict[str, Any] = get_type_hints(Response)


def read_responses(path: Path) -> tuple[Response, ...]:
    """The responses in a file.

    Raises:
        DataError: the file is missing or empty.
        LineFileError: names a line that is not a response.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there: give a file that `pangu-train sample` wrote")
    rows = read_lines(path, path.read_bytes(), _check)
    if not rows:
        raise DataError(f"{path} has no responses: sample some first")
    return tuple(response_of(row) for row in rows)


def response_of(row: dict[str, Any]) -> Response:
    """The response in a row that has all its fields."""
    return Response(**{name: row[name] for name in TYPES})


def _check(row: dict[str, Any]) -> None:
    for name, kind in TYPES.items():
        if name not in row:
            raise ValueError(f"it has no {name}")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise ValueError(f"its {name} is {row[name]!r}")
    if row["role"] not in (STUDENT, TEACHER):
        raise ValueError(f"its role is {row['role']!r}, neither {STUDENT} nor {TEACHER}")
