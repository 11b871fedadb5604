"""`pangu-train problems`: what a benchmark's row becomes in words, and which part is held out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.problems import HOLE, HUMAN_EVAL_ROW, LEET_CODE_ROW, METHOD, PROBLEM

from pangu_training import cli
from pangu_training.data.problems import held_out_ids, row_of
from pangu_training.evaluation.problem import SuiteError
from pangu_training.evaluation.suites import problem_of
from pangu_training.evaluation.words import read_problems

LISTS = "class ListNode:\n    def __init__(self, val=0):\n        self.val = val\n"


def leet_code_file(path: Path, count: int, *others: dict[str, Any]) -> str:
    rows = [
        {
            **LEET_CODE_ROW,
            "task_id": f"task-{number}",
            "meta": LEET_CODE_ROW["meta"]
            | {"question_id": number, "difficulty": "Hard" if number % 3 == 0 else "Easy"},
        }
        for number in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *others]))
    return f"leetcode:{path}"


def problems(source: str, output: Path, *arguments: object) -> int:
    return cli.main(["problems", source, "--output", str(output), *map(str, arguments)])


def ids(path: Path) -> list[str]:
    return [row.id for row in read_problems(path).rows]


def test_a_method_is_asked_for_with_what_is_there() -> None:
    setup = f"from typing import *\nimport math\ninf = float('inf')\n{LISTS}"
    row = row_of(dataclasses.replace(METHOD, setup=setup, question_id=7, difficulty="Easy"))
    assert row["prompt"] == (
        "Three x.\n\n"
        "Write the whole class Solution. All that stands before it here is there already.\n\n"
        "from typing import *\nimport math\n\n"
        "class Solution:\n    def triple(self, x: List[int]) -> int:\n"
    )
    assert (row["id"], row["question_id"], row["difficulty"]) == ("leetcode/own-method", 7, "Easy")
    assert row["setup"] == setup


def test_a_function_is_asked_for_behind_its_helpers() -> None:
    row = row_of(PROBLEM)
    assert row["prompt"].startswith("Sum of the square roots of numbers, plus offset.\nLines end with ")
    assert ">>> root_sum([4, 9], 1)\n6.0\n\nWrite the whole function root_sum." in row["prompt"]
    assert row["prompt"].endswith(
        "here is there already.\n\nfrom math import sqrt\n\n\ndef halve(x):\n    return x / 2\n\n\n"
        "def root_sum(numbers: list, offset: float) -> float:\n"
    )
    assert row["setup"].startswith("from math import sqrt\n")
    assert row["answers"][0]["text"].startswith("def root_sum(")
    assert "question_id" not in row


def test_what_has_no_asserts_makes_no_words() -> None:
    with pytest.raises(SuiteError, match="makes no problems in words"):
        row_of(HOLE)
    with pytest.raises(SuiteError, match="makes no problems in words"):
        row_of(dataclasses.replace(PROBLEM, tests=None))


def test_what_fails_its_own_tests_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {**LEET_CODE_ROW, "task_id": "wrong", "completion": LEET_CODE_ROW["completion"].replace("3", "4")}
    silent = {**LEET_CODE_ROW, "task_id": "silent", "query": _without_statement(LEET_CODE_ROW["query"])}
    source, output = (
        leet_code_file(tmp_path / "leet.jsonl", 3, wrong, silent),
        tmp_path / "p" / "problems.jsonl",
    )
    assert problems(source, output, "--ids", "2-2400") == 0
    assert ids(output) == ["leetcode/task-2", "leetcode/task-3"]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["suite"] == "leetcode-2-2400"
    assert result["problems"] == {"all": 2, "Easy": 1, "Hard": 1}
    assert result["left_out"]["leetcode/wrong"].startswith("failed: ")
    assert result["left_out"]["leetcode/silent"] == "it has no statement"
    [first, _] = read_problems(output).rows
    assert problem_of(first).entry_point == "Solution().triple"
    assert first.answers[0].source == "leetcode"


def test_verdicts_are_kept(tmp_path: Path) -> None:
    source, output = leet_code_file(tmp_path / "leet.jsonl", 2), tmp_path / "problems.jsonl"
    assert problems(source, output) == 0
    journal = tmp_path / ".problems.jsonl.journal"
    verdicts = journal.read_bytes()
    assert problems(source, output) == 2, "the file is there"
    assert problems(source, output, "--force") == 0
    assert journal.read_bytes() == verdicts, "nothing ran again"


def test_the_held_out_part_is_whole_and_apart(tmp_path: Path) -> None:
    source, output, held_out = leet_code_file(tmp_path / "l", 30), tmp_path / "p.jsonl", tmp_path / "h.jsonl"
    assert problems(source, output, "--held-out", held_out, "--held-out-share", 0.2, "--no-check") == 0
    assert sorted(ids(output) + ids(held_out)) == sorted(f"leetcode/task-{number}" for number in range(1, 31))
    rows = read_problems(held_out).rows
    assert [row.fields["difficulty"] for row in rows].count("Hard") == 2
    assert len(rows) == 6


@pytest.mark.parametrize("count", [1, 4, 7, 29])
def test_each_difficulty_gives_its_share(count: int) -> None:
    rows = [{"id": str(number), "difficulty": "Hard" if number % 3 == 0 else "Easy"} for number in range(30)]
    drawn = held_out_ids(rows, count, seed=0)
    assert len(drawn) == count
    assert abs(sum(int(id) % 3 == 0 for id in drawn) - count / 3) < 1
    assert held_out_ids(rows[::-1], count, seed=0) == drawn, "the file's order does not matter"
    if count == 7:
        assert held_out_ids(rows, count, seed=1) != drawn


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--held-out-count", 1), "give --held-out"),
        (("--held-out", "p.jsonl"), "cannot hold two things"),
        (("--held-out", "h.jsonl", "--held-out-count", 2, "--no-check"), "leave none to train on"),
        (("--ids", "7-9"), "no problem with an id from 7 to 9"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(leet_code_file(tmp_path / "leet.jsonl", 2), Path("p.jsonl"), *arguments) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("*p.jsonl"))


def test_problems_in_human_evals_form_can_be_judged(tmp_path: Path) -> None:
    path, output = tmp_path / "own.jsonl", tmp_path / "p.jsonl"
    path.write_text(json.dumps(HUMAN_EVAL_ROW))
    assert problems(f"humaneval:{path}", output) == 0
    assert ids(output) == ["humaneval/Own/0"]


def test_your_own_stay_as_they_are_and_those_with_tests_can_be_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = {"entry_point": "f", "tests": "def check(candidate): assert candidate() == 1", "mine": 7}
    rows = [{"id": f"own/{n}", "prompt": f"f returns {n}.", **(tested if n % 2 else {})} for n in range(10)]
    source, output, held_out = tmp_path / "mine.jsonl", tmp_path / "p.jsonl", tmp_path / "h.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert problems(f"problems:{source}", output, "--held-out", held_out, "--held-out-count", 2) == 0
    written = [[json.loads(line) for line in file.read_text().splitlines()] for file in (output, held_out)]
    assert [len(part) for part in written] == [8, 2]
    assert all("tests" in row for row in written[1])
    assert sorted(written[0] + written[1], key=lambda row: row["id"]) == rows
    again = ("--held-out", held_out, "--force", "--held-out-count")
    assert problems(f"problems:{source}", output, *again, 6) == 2
    assert "only 5 problems have tests" in capsys.readouterr().err
    source.write_text(json.dumps(rows[0]))
    assert problems(f"problems:{source}", output, *again, 1) == 2
    assert "has tests, to judge" in capsys.readouterr().err
    assert len(ids(output)) == 8, "nothing is lost"


def _without_statement(query: str) -> str:
    request = query[query.index("\nPlease complete") :]
    return f"English description is not available for the problem. Please switch to Chinese.{request}"
