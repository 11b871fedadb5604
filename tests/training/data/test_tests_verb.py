"""`pangu-train tests` over a server whose answers are written down, with the real sandbox."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.answering import Answer, answering

from pangu_training import cli
from pangu_training.evaluation.judging import check_of
from pangu_training.evaluation.suites import own_problems
from pangu_training.evaluation.words import read_problems
from pangu_training.sandbox.execution import Outcome, run

RIGHT = "def triple(x):\n    return 3 * x\n"
ALSO_RIGHT = "def triple(x):\n    return x + x + x\n"
SQUARE = "def triple(x):\n    return x * x\n"
ENDS = "import os\n\ndef triple(x):\n    if x < 0:\n        os._exit(0)\n    return 3 * x\n"
BROKEN = "def triple(x:\n    return\n"
ASSERTS = (
    "assert triple(-1) == -3",  # the first: programs that end there are run over the others all the same
    "assert triple(0) == 0",
    "assert triple(1) == 3",
    "assert triple(2) == 6, 'doubled'",
    "assert triple(3) == 10",  # wrong
    "assert triple('ab') == x",  # not taken
)
SETTINGS = ("--asserts", 9, "--assert-answers", 2, "--concurrency", 1)


def fenced(code: str) -> str:
    return f"Sure:\n```python\n{code}\n```\n"


def model(programs: list[str], asserts: tuple[str, ...] = ASSERTS) -> Callable[[dict[str, Any]], Answer]:
    """Answers with asserts where tests are asked for, else with the next program."""
    waiting: Iterator[str] = iter(programs)

    def answer(body: dict[str, Any]) -> Answer:
        if "You write tests" in body["messages"][0]["content"]:
            return "\n".join(asserts)
        return fenced(next(waiting))

    return answer


@pytest.fixture
def tests(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, Any, str]]:
    """Runs the verb: exit code, the JSON that stdout ends with (or None), stderr."""

    def run(address: str, *arguments: object) -> tuple[int, Any, str]:
        files = (tmp_path / "problems.jsonl", "--output", tmp_path / "tested.jsonl")
        words = ["tests", *files, "--base-url", address, *SETTINGS, *arguments]
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        last = captured.out.splitlines()[-1] if captured.out else "null"
        return code, json.loads(last), captured.err

    return run


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_asserts_that_programs_agree_on_become_tests(tests: Any, tmp_path: Path) -> None:
    tested = {"id": "own/0", "prompt": "Add.", "entry_point": "add", "tests": "def check(candidate): pass\n"}
    given = {"id": "own/1", "prompt": "Triple a number.", "parent": "own/7"}
    write(tmp_path / "problems.jsonl", tested, given)
    programs = [SQUARE, RIGHT, ENDS, ALSO_RIGHT, BROKEN, RIGHT]
    output = tmp_path / "tested.jsonl"
    with answering(model(programs)) as server:
        code, result, _ = tests(server.address, "--solutions", 6, "--price-completion", 1_000_000)
        assert code == 0
        journal = (tmp_path / ".tested.jsonl.tests.journal").read_bytes()
        whole = output.read_bytes()
        assert tests(server.address, "--solutions", 6, "--price-completion", 1_000_000)[1] == result
        assert (tmp_path / ".tested.jsonl.tests.journal").read_bytes() == journal, (
            "nothing asked, nothing run"
        )
        assert output.read_bytes() == whole
        assert len(server.bodies) == 2 + 6
        assert {body["messages"][0]["content"] for body in server.bodies[2:]} == {
            "Triple a number.\n\nName the function `triple`.\n\n"
            "Answer with the whole Python code in one Markdown code block."
        }
    kept, row = read_problems(output).rows
    assert kept.fields == tested
    assert row.fields == {
        **given,
        "prompt": "Triple a number.\n\nName the function `triple`.",
        "entry_point": "triple",
        "tests": "def check(candidate):\n"
        "    assert candidate(-1) == -3\n"
        "    assert candidate(0) == 0\n"
        "    assert candidate(1) == 3\n"
        "    assert candidate(2) == 6\n",
        "answers": [{"text": row.answers[0].text, "source": "written/down"}],
        "tests_by": {
            "model": "written/down",
            "asserts": 5,
            "asserts_kept": 4,
            "programs": 6,
            "programs_agreeing": 3,
        },
    }
    assert row.answers[0].text.strip() == RIGHT.strip()
    problem = own_problems(output).problems[1]
    assert run(row.answers[0].text, check_of(problem)).outcome is Outcome.PASSED
    assert run(SQUARE, check_of(problem)).outcome is Outcome.FAILED
    assert result["got_tests"] == 1
    assert result["had_tests"] == 1
    assert result["costs"]["asserts"]["requests"] == 2
    assert result["costs"]["programs"]["price"] == 6 * 5


def test_a_program_that_ends_early_is_judged_by_the_asserts_behind(tests: Any, tmp_path: Path) -> None:
    write(
        tmp_path / "problems.jsonl", {"id": "own/1", "prompt": "Write triple(x).", "setup": "import math\n"}
    )
    with answering(model([ENDS] * 3)) as server:
        assert tests(server.address, "--solutions", 3)[1]["got_tests"] == 1
    [row] = read_problems(tmp_path / "tested.jsonl").rows
    assert row.prompt == "Write triple(x).", "it names its function"
    assert row.tests.count("assert") == 3
    assert "candidate(-1)" not in row.tests
    assert "math" not in row.answers[0].text, "the setup is not part of an answer"


@pytest.mark.parametrize(
    ("programs", "asserts", "reason"),
    [
        ([RIGHT] * 3, ASSERTS[:2], "too few asserts"),
        ([RIGHT, SQUARE, BROKEN], ASSERTS, "too few programs agree"),
        ([SQUARE] * 3, ASSERTS, "too few asserts agreed on"),
    ],
)
def test_without_agreement_a_problem_is_passed_on_as_it_is(
    tests: Any, tmp_path: Path, programs: list[str], asserts: tuple[str, ...], reason: str
) -> None:
    write(tmp_path / "problems.jsonl", {"id": "own/1", "prompt": "Triple a number."})
    with answering(model(programs, asserts)) as server:
        code, result, _ = tests(server.address, "--solutions", 3)
        assert code == 0
        assert len(server.bodies) == (2 if reason == "too few asserts" else 5), (
            "no program is asked for in vain"
        )
    assert result["without_tests"] == {reason: 1}
    assert (tmp_path / "tested.jsonl").read_bytes() == (tmp_path / "problems.jsonl").read_bytes()


def test_more_programs_can_be_asked_for_later(tests: Any, tmp_path: Path) -> None:
    write(tmp_path / "problems.jsonl", {"id": "own/1", "prompt": "Triple a number."})
    with answering(model([RIGHT, SQUARE, RIGHT, RIGHT])) as server:
        assert tests(server.address, "--solutions", 2)[1]["got_tests"] == 0
        assert tests(server.address, "--solutions", 4)[1]["got_tests"] == 1
        assert len(server.bodies) == 2 + 4
