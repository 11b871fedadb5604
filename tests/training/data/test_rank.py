"""`pangu-train rank` from files to ranked pairs, through the real sandbox."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.responses import response, write_lines

from pangu_training import cli
from pangu_training.data.ranked import read_ranked
from pangu_training.data.responses import Response

PROBLEM = {
    "id": "root",
    "prompt": "Write root(x), the square root of x plus OFFSET.",
    "entry_point": "root",
    "tests": "def check(candidate):\n    assert candidate(4) == 3\n    assert candidate(9) == 4\n",
    "setup": "from math import sqrt\nOFFSET = 1",
}
RIGHT = "def root(x):\n    return sqrt(x) + OFFSET"
WRONG = "def root(x):\n    return 3"
RAISES = "def root(x):\n    return square(x)"
CUT = "def root(x):\n    return sqrt("


def rank(folder: Path, problems: list[dict[str, Any]], responses: list[Response], *options: str) -> int:
    files = (
        write_lines(folder / "problems.jsonl", problems),
        write_lines(folder / "responses.jsonl", responses),
    )
    return cli.main(["rank", *map(str, files), "--output", str(folder / "ranked.jsonl"), *options])


def result_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object on the last line."""
    shown = capsys.readouterr().out
    value: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return value


def test_from_responses_to_ranked_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fenced = (
        f"Here it is:\n\n```python\nfrom __future__ import annotations\n\n{RIGHT}\n\nprint(root(4))\n```\n"
    )
    students = {"wrong": WRONG, "raises": RAISES, "cut": CUT}
    problems = [PROBLEM | {"id": name} for name in (*students, "right", "untested", "broken")]
    problems[4] = {"id": "untested", "prompt": "Do it."}
    problems[5] |= {"tests": "def check(candidate):\n    missing(candidate)\n"}
    responses = [
        response(name, "student", text, source="me", style="pangu") for name, text in students.items()
    ]
    responses += [
        response("right", "student", f"from __future__ import annotations\n{RIGHT}  # mine", source="me"),
        response("broken", "student", WRONG, source="me"),
        response("gone", "student", WRONG, source="me"),
    ]
    for problem in problems:
        responses += [
            response(
                problem["id"], "teacher", fenced, source="big", style="chat", model="big-7b", temperature=0.2
            ),
            response(problem["id"], "teacher", "", source="silent"),
        ]
    assert rank(tmp_path, problems, responses, "--require-pass") == 0

    rows = {row.id: row for row in read_ranked(tmp_path / "ranked.jsonl").rows}
    assert list(rows) == ["wrong", "raises", "cut"]
    assert {row.prompt for row in rows.values()} == {PROBLEM["prompt"]}
    for name, score in (("wrong", -0.3), ("raises", -0.6), ("cut", -1)):
        assert rows[name].rejected.text == students[name]
        assert (rows[name].chosen.score, rows[name].rejected.score) == (1, score)
    chosen = rows["wrong"].chosen
    assert chosen.text == f"from __future__ import annotations\n\n{RIGHT}", "neither setup nor example"
    assert chosen.details["model"] == "big-7b"
    assert rows["wrong"].rejected.details["passed_checks"] == 1

    shown = capsys.readouterr().out
    assert "big (teacher)" in shown
    result = json.loads(shown.splitlines()[-1])
    assert result["pair_situations"] == {
        "passes all > passes some": 1,
        "passes all > runtime error": 1,
        "passes all > does not compile": 1,
    }
    assert result["left_out"] == {
        "the student's programs are the teacher's": 1,
        "no tests": 1,
        "tests that cannot run": 1,
    }
    big, silent, me = result["sources"]
    assert (big["source"], big["responses"], big["pass_at_1"], big["chosen"]) == ("big", 4, 1, 3)
    assert (silent["source"], silent["without_program"], silent["chosen"]) == ("silent", 4, 0)
    assert (me["source"], me["pass_at_1"], me["rejected"]) == ("me", 0.25, 3)


ANSWERS = [
    response("root", "teacher", RIGHT),
    *(response("root", "student", text) for text in (WRONG, RAISES, CUT)),
]


def test_a_verdict_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "ranked.verdicts.jsonl"
    again = [response("root", "student", WRONG, sample=9)]
    assert rank(tmp_path, [PROBLEM], ANSWERS + again) == 0
    ranked, verdicts = (tmp_path / "ranked.jsonl").read_bytes(), journal.read_bytes()
    assert verdicts.count(b"\n") == len(ANSWERS)
    first = result_of(capsys)

    (tmp_path / "ranked.jsonl").unlink()
    journal.write_bytes(verdicts[: verdicts.rfind(b"\n", 0, -1) + 20])  # killed while it wrote the last
    assert rank(tmp_path, [PROBLEM], ANSWERS + again) == 0
    assert (tmp_path / "ranked.jsonl").read_bytes() == ranked
    lines = journal.read_bytes().splitlines()
    assert lines[:-1] == verdicts.splitlines()[:-1]
    assert json.loads(lines[-1])["key"] == json.loads(verdicts.splitlines()[-1])["key"]
    second = result_of(capsys)
    assert second.pop("cpu_seconds") > 0
    assert first.items() >= second.items()

    changed = PROBLEM | {"tests": f"{PROBLEM['tests']}    assert candidate(0) == 1\n"}
    assert rank(tmp_path, [changed], ANSWERS, "--force") == 0
    assert journal.read_bytes().count(b"\n") == 2 * len(ANSWERS), "other tests, other verdicts"


def test_other_work_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ranked.jsonl").write_text("mine")
    assert rank(tmp_path, [PROBLEM], ANSWERS) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "ranked.jsonl").read_text() == "mine"
    assert not (tmp_path / "ranked.verdicts.jsonl").exists()


@pytest.mark.parametrize(
    ("problem", "responses", "message"),
    [
        ({"id": "root", "prompt": "untested"}, ANSWERS, "has tests"),
        (PROBLEM, ANSWERS[1:], "no problem gives a pair"),
        (PROBLEM, [response("root", "teacher", RIGHT, style="completion")], "choose another style"),
        (PROBLEM, [response("root", "teacher", RIGHT, style="poem")], "'poem' is not a prompt style"),
    ],
)
def test_what_cannot_be_ranked_is_said(
    problem: dict[str, Any],
    responses: list[Response],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rank(tmp_path, [problem], responses) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ranked.jsonl").exists()


def test_half_a_surrogate_pair_is_no_reason_to_lose_a_ranking(tmp_path: Path) -> None:
    assert rank(tmp_path, [PROBLEM], [*ANSWERS[:1], response("root", "student", f"{WRONG}  # \ud800")]) == 0
    (row,) = read_ranked(tmp_path / "ranked.jsonl").rows
    assert row.rejected.text == f"{WRONG}  # ?"
