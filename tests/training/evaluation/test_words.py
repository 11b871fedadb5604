"""Problems in words, and as a suite."""

import json
from pathlib import Path

import pytest

from pangu_training.evaluation.judging import check_of
from pangu_training.evaluation.problem import SuiteError
from pangu_training.evaluation.styles import style_for
from pangu_training.evaluation.suites import read_suite
from pangu_training.evaluation.words import read_problems, write_problems
from pangu_training.sandbox.execution import Outcome, run
from pangu_training.stage.errors import DataError

ROW = {
    "id": "own/1",
    "prompt": 'Write add(a, b). """ends""" nothing.',
    "entry_point": "add",
    "tests": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, TWO) == 2\n",
    "setup": "TWO = 2\n",
    "answers": [{"text": "def add(a, b):\n    return a + b\n", "source": "me"}],
    "difficulty": "easy",
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_keeps_what_it_came_with(tmp_path: Path) -> None:
    file = read_problems(write(tmp_path / "p.jsonl", ROW, {"id": "2", "prompt": "Do \u2028 it."}))
    assert [row.id for row in file.rows] == ["own/1", "2"]
    assert file.rows[0].answers[0].source == "me"
    assert file.rows[0].fields["difficulty"] == "easy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": " "}, "line 1: id is missing"),
        ({"prompt": 3}, "line 1: prompt is not a text"),
        ({"entry_point": ""}, "go together"),
        ({"answers": [{"text": "x"}]}, "answers is not a list"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_problems(write(tmp_path / "p.jsonl", ROW | change))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        read_problems(tmp_path / "p.jsonl")
    with pytest.raises(DataError, match="no rows"):
        read_problems(write(tmp_path / "p.jsonl"))
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_problems(write(tmp_path / "p.jsonl", ROW, "{"))
    with pytest.raises(DataError, match="two problems of id 'own/1'"):
        read_problems(write(tmp_path / "p.jsonl", ROW, ROW))


def test_half_a_surrogate_pair_is_no_reason_to_lose_the_rows(tmp_path: Path) -> None:
    write_problems(tmp_path / "p.jsonl", [{"id": "a", "prompt": "half a smiley: \ud83d"}])
    assert [row.prompt for row in read_problems(tmp_path / "p.jsonl").rows] == ["half a smiley: ?"]


def test_problems_with_tests_are_a_suite(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ROW, {"id": "2", "prompt": "untested"})
    (problem,) = read_suite(f"problems:{path}").problems
    style = style_for(problem, "pangu")
    assert style.prompt(problem).text == "\"\"\"\nWrite add(a, b). '''ends''' nothing.\n\"\"\"\n"
    assert "Write add(a, b)." in style_for(problem, "chat").prompt(problem).messages[0]["content"]
    assert "Write add(a, b)." in (style_for(problem, "wizardcoder").prompt(problem).text or "")
    with pytest.raises(SuiteError, match="in words"):
        style_for(problem, "completion")
    right = style.program(problem, "def add(a, b):\n    return a + b\n\nprint(add(1, 1))\n")
    result = run(right, check_of(problem))
    assert (result.outcome, result.passed_checks) == (Outcome.PASSED, 2)
    result = run(style.program(problem, "def add(a, b):\n    return 3\n"), check_of(problem))
    assert (result.outcome, result.passed_checks, result.total_checks) == (Outcome.FAILED, 1, 2)
    assert run(problem.canonical_program, check_of(problem)).outcome is Outcome.PASSED


def test_problems_without_tests_are_no_suite(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no problem of .* has tests"):
        read_suite(f"problems:{write(tmp_path / 'p.jsonl', {'id': '2', 'prompt': 'untested'})}")
