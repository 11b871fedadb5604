"""What is not a ranked row is refused by line; what is written is read again."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.ranked_rows import ranked_rows

from pangu_training.data.ranked import read_ranked, write_ranked
from pangu_training.stage.errors import DataError

ROW: dict[str, Any] = {
    "id": "a",
    "prompt": "Add.",
    "chosen": {"text": "1 + 1", "score": 1, "source": "teacher"},
    "rejected": {"text": "1", "score": 0.5, "source": "student"},
    "outcome": "more is allowed",
}


def changed(path: str, value: Any) -> str:
    row = json.loads(json.dumps(ROW))
    *parents, name = path.split(".")
    target = row
    for parent in parents:
        target = target[parent]
    target[name] = value
    return json.dumps(row)


def test_rows_written_are_read_again(tmp_path: Path) -> None:
    first, *others = ranked_rows(3)
    rows = [replace(first, chosen=replace(first.chosen, details={"outcome": "passed"})), *others]
    write_ranked(tmp_path / "rows.jsonl", rows)
    file = read_ranked(tmp_path / "rows.jsonl")
    assert list(file.rows) == rows
    assert file.sha256 == hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 is not a JSON object"),
        (changed("id", ""), "line 2: id is missing or empty"),
        (changed("prompt", None), "line 2: prompt is missing"),
        (changed("chosen", "text"), "line 2, chosen: an object"),
        (changed("chosen.text", " \n"), "line 2, chosen: text is missing or empty"),
        (changed("rejected.score", "high"), "line 2, rejected: score is 'high'"),
        (changed("rejected.score", float("nan")), "line 2, rejected: score is nan"),
        (changed("rejected.score", 2), "line 2: chosen scores 1, below rejected with 2"),
        (json.dumps(ROW), "two rows of id 'a'"),
    ],
)
def test_what_is_no_row_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        read_ranked(tmp_path / "rows.jsonl")


def test_no_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        read_ranked(tmp_path / "rows.jsonl")
