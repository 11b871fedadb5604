"""Ranked pairs: what the ranker writes and `fit` trains on. JSONL, one row a prompt. Standard library only.

    {"id": "leetcode/1", "prompt": "the problem in words",
     "chosen":   {"text": "def …", "score": 1.0, "source": "teacher-7b"},
     "rejected": {"text": "def …", "score": -0.3, "source": "student"}}

`text` is the program alone, without prose around it. The chosen answer's score is never below the rejected
one's; with equal scores a row teaches no ranking (section 3.1: on a tie the teacher is ranked higher, so the
ranker adds a bonus to its score). Other fields are allowed: those of an answer are its `details`, which `fit` does not
look at.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_training.stage.errors import DataError
from pangu_training.stage.output import write_json_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A program, its score by the tests, and who wrote it; `details` are JSON values."""

    text: str
    score: float
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """As a file has it."""
        return {"text": self.text, "score": self.score, "source": self.source, **self.details}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """One prompt with the answer to learn and the one to prefer it to."""

    id: str
    prompt: str
    chosen: Answer
    rejected: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedFile:
    """A file's rows, and its identity."""

    path: Path
    sha256: str
    rows: tuple[RankedRow, ...]


def read_ranked(path: Path) -> RankedFile:
    """Read a file of ranked rows.

    Raises:
        DataError: names the line and what is wrong with it.
    """
    data = path.read_bytes()
    rows = tuple(
        _row(line, f"{path}, line {number}")
        for number, line in enumerate(data.splitlines(), start=1)
        if line.strip()
    )
    if not rows:
        raise DataError(f"{path} has no rows: run the ranker again, or loosen its filter")
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise DataError(f"{path} has two rows of id {twice!r}: one row a prompt is expected")
    return RankedFile(path=path, sha256=hashlib.sha256(data).hexdigest(), rows=rows)


def write_ranked(path: Path, rows: Iterable[RankedRow]) -> None:
    """Write `rows` so that the file is either absent or whole."""
    write_json_lines(path, map(_fields, rows))


def _fields(row: RankedRow) -> dict[str, Any]:
    answers = {"chosen": row.chosen.fields, "rejected": row.rejected.fields}
    return {"id": row.id, "prompt": row.prompt, **answers}


def _row(line: bytes, where: str) -> RankedRow:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object")
    chosen, rejected = (_answer(row, name, where) for name in ("chosen", "rejected"))
    if chosen.score < rejected.score:
        raise DataError(f"{where}: chosen scores {chosen.score}, below rejected with {rejected.score}")
    return RankedRow(
        id=_text(row, "id", where), prompt=_text(row, "prompt", where), chosen=chosen, rejected=rejected
    )


def _answer(row: dict[str, Any], name: str, where: str) -> Answer:
    answer, where = row.get(name), f"{where}, {name}"
    if not isinstance(answer, dict):
        raise DataError(f"{where}: an object with text, score and source is expected")
    score = answer.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < float("inf"):
        raise DataError(f"{where}: score is {score!r}, a number is expected")
    return Answer(
        text=_text(answer, "text", where),
        score=score,
        source=_text(answer, "source", where),
        details={name: value for name, value in answer.items() if name not in ("text", "score", "source")},
    )


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is missing or empty")
    return value
