"""The sandbox's attacks as a student's responses, through the real verb: none scores as if it were right."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.attacked import healthy, secret  # noqa: F401
from support.attacks import ANSWER, EXHAUSTIONS, FORGERIES, HARM, HARMS, exhaustion, harm
from support.responses import response, write_lines

from pangu_training import cli
from pangu_training.data.ranked import read_ranked
from pangu_training.sandbox.checks import Check


def problem(name: str, check: Check) -> dict[str, Any]:
    return {"id": name, "prompt": "Write f.", "entry_point": check.entry_point, "tests": check.test}


def attacks(secret: Path) -> Iterator[tuple[str, str]]:  # noqa: F811
    """Problem and program."""
    for action, _ in HARMS.values():
        yield "harm", harm(action, secret)
    for action, _ in EXHAUSTIONS.values():
        yield "harm", exhaustion(action)
    for program in FORGERIES.values():
        yield "answer", program


def test_no_attack_is_ranked_as_right(
    secret: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    responses = [
        response("harm", "teacher", "def f(): return True"),
        response("answer", "teacher", "def f(n): return n ** 3 + 11"),
        *(
            response(name, "student", program, sample=at)
            for at, (name, program) in enumerate(attacks(secret))
        ),
    ]
    problems = write_lines(tmp_path / "problems.jsonl", [problem("harm", HARM), problem("answer", ANSWER)])
    answers, output = write_lines(tmp_path / "responses.jsonl", responses), tmp_path / "ranked.jsonl"
    options = ["--cpu-seconds", "1", "--rejected", "best"]
    assert cli.main(["rank", str(problems), str(answers), "--output", str(output), *options]) == 0

    teacher, student = json.loads(capsys.readouterr().out.splitlines()[-1])["sources"]
    assert teacher["situations"]["passes all"] == 2
    assert student["responses"] == len(HARMS) + len(EXHAUSTIONS) + len(FORGERIES)
    assert student["situations"]["passes all"] == 0
    verdicts = map(json.loads, (tmp_path / "ranked.verdicts.jsonl").read_text().splitlines())
    assert sum(verdict["passed_checks"] > 0 for verdict in verdicts) == 2, "the teacher's"
    for row in read_ranked(output).rows:
        assert row.chosen.score == 1
        assert row.rejected.score <= -0.3
        assert row.rejected.details["passed_checks"] == 0
    assert secret.read_text() == "mine"
