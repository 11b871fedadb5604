"""Problems in words: what `pangu-train` evolves, cleans, samples and ranks. JSONL, one row a problem.

    {"id": "own/1", "prompt": "Write a function add(a, b) that …",
     "entry_point": "add", "tests": "def check(candidate):\\n    assert candidate(1, 2) == 3\\n",
     "setup": "import math\\n", "answers": [{"text": "def add(a, b): …", "source": "me"}]}

`id` and `prompt` are enough until answers are ranked, which takes `entry_point` (an expression: `add`,
`Solution().twoSum`) and `tests`, as HumanEval has them. `setup` runs before program and tests and is shown to no model.
`answers` are programs that are there already, a teacher's. Other fields are allowed and kept. Standard library only.
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
class RecordedAnswer:
    """A program that came with the problem, and who wrote it."""

    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemRow:
    """A problem; `fields` is the row as it was read."""

    id: str
    prompt: str
    entry_point: str = ""
    tests: str = ""
    setup: str = ""
    answers: tuple[RecordedAnswer, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemFile:
    """A file's rows, and its identity."""

    path: Path
    sha256: str
    rows: tuple[ProblemRow, ...]


def read_problems(path: Path) -> ProblemFile:
    """Read a file of problems.

    Raises:
        DataError: the file is missing or empty; or names the line and what is wrong with it.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there: give a file of problems, JSONL")
    data = path.read_bytes()
    rows = [
        problem_row(line, f"{path}, line {number}")
        for number, line in enumerate(data.split(b"\n"), start=1)
        if line.strip()
    ]
    if not rows:
        raise DataError(f"{path} has no rows")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"{path} has two problems of id {row.id!r}: give each its own")
        seen.add(row.id)
    return ProblemFile(path=path, sha256=hashlib.sha256(data).hexdigest(), rows=tuple(rows))


def write_problems(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, as JSON objects, so that the file is either absent or whole."""
    write_json_lines(path, rows)


def problem_row(line: bytes, where: str) -> ProblemRow:
    """The problem in a line; `DataError` says what is wrong with it."""
    try:
        fields: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where} is not a JSON object")
    texts = {name: fields.get(name, "") for name in ("id", "prompt", "entry_point", "tests", "setup")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {name} is not a text")
        if not value.strip() and name in ("id", "prompt"):
            raise DataError(f"{where}: {name} is missing or empty")
    if bool(texts["tests"].strip()) != bool(texts["entry_point"].strip()):
        raise DataError(f"{where}: tests and entry_point go together")
    answers = fields.get("answers", [])
    if not isinstance(answers, list) or not all(
        isinstance(answer, dict)
        and isinstance(answer.get("text"), str)
        and isinstance(answer.get("source"), str)
        for answer in answers
    ):
        raise DataError(f"{where}: answers is not a list of objects with text and source")
    return ProblemRow(
        **texts,
        answers=tuple(RecordedAnswer(text=answer["text"], source=answer["source"]) for answer in answers),
        fields=fields,
    )
