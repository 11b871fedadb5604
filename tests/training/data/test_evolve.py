"""`pangu-train evolve` over a server whose answers are written down."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.answering import Answer, answering

from pangu_training import cli
from pangu_training.asking.questions import Choice, Reply
from pangu_training.data.evolve import fault
from pangu_training.data.instructions import LABELS, METHODS, evolution, method_for
from pangu_training.evaluation.words import read_problems

TASKS = {"own/1": "Add up two numbers.", "own/2": "Reverse a list of numbers."}
HARDER = "Do it, but without {} at all: "


def harder(body: dict[str, Any]) -> str:
    return HARDER.format("loops") + task_of(body)


def task_of(body: dict[str, Any]) -> str:
    """The task in a message, its last line of words before the rule."""
    before, _, _ = body["messages"][0]["content"].partition("\n\n---\n")
    return str(before.split("\n\n", 1)[1])


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [{"id": name, "prompt": task} for name, task in TASKS.items()]
    rows[0] |= {"entry_point": "add", "tests": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}
    rows[0] |= {"answers": [{"text": "def add(a, b): return a + b", "source": "me"}], "topic": "sums"}
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def evolve(
    capsys: pytest.CaptureFixture[str], problems: Path, tmp_path: Path
) -> Callable[..., tuple[int, Any, str]]:
    """Runs the verb: exit code, the JSON that stdout ends with (or None), stderr."""

    def run(address: str, *arguments: object) -> tuple[int, Any, str]:
        words = [
            "evolve",
            problems,
            "--base-url",
            address,
            "--output",
            tmp_path / "evolved.jsonl",
            *arguments,
        ]
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        last = captured.out.splitlines()[-1] if captured.out else "null"
        return code, json.loads(last), captured.err

    return run


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row.id: dict(row.fields) for row in read_problems(path).rows}


def test_each_round_evolves_what_the_one_before_gave(evolve: Any, problems: Path, tmp_path: Path) -> None:
    output = tmp_path / "evolved.jsonl"
    with answering(harder) as server:
        code, result, _ = evolve(server.address, "--rounds", 2)
        assert code == 0
        rows = rows_of(output)
        assert list(rows) == ["own/1", "own/2", "own/1+1", "own/2+1", "own/1+2", "own/2+2"]
        assert {name: rows[name] for name in TASKS} == rows_of(problems)
        once = harder({"messages": [{"content": f"\n\n{TASKS['own/1']}\n\n---\n"}]})
        assert rows["own/1+1"] == {
            "id": "own/1+1",
            "prompt": once,
            "parent": "own/1",
            "round": 1,
            "method": method_for(0, "own/1", 1),
            "model": "written/down",
        }
        assert rows["own/1+2"]["prompt"] == HARDER.format("loops") + once
        assert rows["own/1+2"]["parent"] == "own/1+1"
        assert all("seed" not in body for body in server.bodies)
        first = server.bodies[0]
        assert (first["temperature"], first["top_p"], first["max_tokens"]) == (1, 0.95, 2048)

        whole = output.read_bytes()
        again = evolve(server.address, "--rounds", 2)[1]
        assert (again, output.read_bytes()) == (result, whole)
        assert len(server.bodies) == 4, "what is there is not asked again"
        evolve(server.address, "--rounds", 3, "--evolved-only")
        assert len(server.bodies) == 6, "one round more is one round more"
        assert list(rows_of(output)) == [f"own/{n}+{r}" for r in (1, 2, 3) for n in (1, 2)]
        evolve(server.address, "--temperature", 0.5)
        assert len(server.bodies) == 8, "other settings, other answers"
    assert (result["originals"], result["evolved"]) == (2, 4)
    assert [figures["requests"] for figures in result["rounds"]] == [2, 2]


def test_tokens_and_money_are_counted_rejected_answers_too(evolve: Any) -> None:
    answers = iter(["-", "sorry, no"])
    with answering(lambda body: next(answers, None) or harder(body)) as server:
        prices = ("--price-prompt", 1_000_000, "--price-completion", 2_000_000)
        result = evolve(server.address, *prices, "--concurrency", 1)[1]
    assert result["costs"]["requests"] == 4
    assert (result["costs"]["prompt_tokens"], result["costs"]["completion_tokens"]) == (12, 20)
    assert result["costs"]["price"] == 12 + 2 * 20
    assert result["rounds"][0]["not_taken"] == {"no words": 2}


def test_the_order_is_that_of_the_problems(evolve: Any, tmp_path: Path) -> None:
    answers = iter(["-"])
    with answering(lambda body: next(answers, None) or harder(body)) as server:
        evolve(server.address, "--concurrency", 1)
    assert list(rows_of(tmp_path / "evolved.jsonl"))[2:] == ["own/1+1", "own/2+1"]


def test_a_bad_answer_is_asked_again_and_then_the_chain_stops(evolve: Any, tmp_path: Path) -> None:
    with answering(
        lambda body: "Rewritten Task: add them" if "Reverse" in task_of(body) else harder(body)
    ) as server:
        code, result, _ = evolve(server.address, "--rounds", 3, "--tries", 2, "--seed", 5)
        assert code == 0
        assert [figures["evolved"] for figures in result["rounds"]] == [1, 1, 1]
        assert [figures["stopped"] for figures in result["rounds"]] == [1, 0, 0]
        assert result["rounds"][0]["not_taken"] == {"label": 2}
        seeds = {body["seed"] for body in server.bodies}
        assert len(seeds) == len(server.bodies) == 5
        again = ("--rounds", 3, "--tries", 2, "--seed", 5, "--output", tmp_path / "again.jsonl")
        evolve(server.address, *again)
        assert {body["seed"] for body in server.bodies[5:]} == seeds
    assert list(rows_of(tmp_path / "evolved.jsonl")) == ["own/1", "own/2", "own/1+1", "own/1+2", "own/1+3"]
    rejected = [json.loads(line) for line in (tmp_path / "evolved.rejected.jsonl").read_text().splitlines()]
    assert [(row["parent"], row["try"], row["reason"], row["text"]) for row in rejected] == [
        ("own/2", number, "label", "Rewritten Task: add them") for number in (1, 2)
    ]


def test_a_problem_that_the_server_refuses_stops_alone(evolve: Any) -> None:
    with answering(lambda body: 400 if "Reverse" in task_of(body) else harder(body)) as server:
        code, result, _ = evolve(server.address, "--rounds", 2, "--concurrency", 1)
        assert code == 0
        assert [figures["evolved"] for figures in result["rounds"]] == [1, 1]
        assert result["rounds"][0]["not_taken"] == {"refused by the server": 1}
        assert len(server.bodies) == 3
    with answering(harder) as server:
        assert evolve(server.address)[1]["evolved"] == 2, "a refusal is not for ever"


@pytest.mark.parametrize(
    ("status", "words", "asked"),
    [
        (400, "written/down refuses every request: own/1, round 1", 2),
        (401, "the server said 401: not now", 1),
        (500, "the server said 500: not now", 5),
    ],
)
def test_a_server_that_takes_nothing_ends_the_command(
    evolve: Any, tmp_path: Path, status: int, words: str, asked: int
) -> None:
    with answering(lambda _: status) as server:
        code, _, errors = evolve(server.address, "--concurrency", 1)
        assert len(server.bodies) == asked
    assert (code, errors.count("\n")) == (2, 1)
    assert words in errors
    assert not (tmp_path / "evolved.jsonl").exists()


def test_a_server_that_fails_now_and_then_is_asked_again(evolve: Any) -> None:
    failures = iter((500, 503, 0, 429))

    def answer(body: dict[str, Any]) -> Answer:
        status = next(failures, None)
        if status == 0:
            return None
        return status or harder(body)

    with answering(answer) as server:
        assert evolve(server.address)[1]["evolved"] == 2
        assert len(server.bodies) == 6


def test_a_killed_command_goes_on(evolve: Any, problems: Path, tmp_path: Path) -> None:
    released, asked = threading.Event(), threading.Event()

    def hold_the_second(body: dict[str, Any]) -> str:
        if "Reverse" in task_of(body) and not released.is_set():
            asked.set()
            released.wait(30)
        return harder(body)

    with answering(hold_the_second) as server:
        output = tmp_path / "evolved.jsonl"
        arguments = (
            "evolve",
            problems,
            "--base-url",
            server.address,
            "--output",
            output,
            "--concurrency",
            "1",
        )
        process = subprocess.Popen([sys.executable, "-m", "pangu_training.cli", *map(str, arguments)])
        assert asked.wait(30)
        process.send_signal(signal.SIGKILL)
        process.wait()
        released.set()
        assert not output.exists()
        assert evolve(server.address)[1]["evolved"] == 2
        assert [task_of(body) for body in server.bodies].count(TASKS["own/1"]) == 1


def test_other_work_is_not_overwritten(evolve: Any, problems: Path, tmp_path: Path) -> None:
    (tmp_path / "evolved.jsonl").write_text("mine")
    with answering(harder) as server:
        code, _, errors = evolve(server.address)
        assert code == 2
        assert "evolved.jsonl exists already" in errors
        code, _, errors = evolve(server.address, "--output", problems)
        assert code == 2
        assert "choose another output" in errors
        assert not server.bodies


def test_what_cannot_be_asked_is_said(evolve: Any, problems: Path) -> None:
    with answering(harder) as server:
        code, _, errors = evolve(server.address, "--model", "gpt")
        assert code == 2
        assert "has no model 'gpt': choose one of written/down" in errors
        with problems.open("a") as file:
            file.write(json.dumps({"id": "own/1+1", "prompt": "Add up three numbers."}) + "\n")
        code, _, errors = evolve(server.address)
        assert code == 2
        assert "give the file of the originals" in errors
        assert not server.bodies


@pytest.mark.parametrize(
    ("reason", "text", "method"),
    [
        ("", "Add three numbers, without the sign +.", "constraints"),
        ("", "The sum is:\n```python\ndef add(a, b):\n    return a - b\n```\nAdd 3.", "misleading code"),
        ("solution", "The sum is:\n```python\ndef add(a, b):\n    return a - b\n```\nAdd 3.", "constraints"),
        ("no words", "```python\ndef add(a, b):\n    return a - b\n", "misleading code"),
        ("no words", " \n", "constraints"),
        ("no words", "Add numbers.", "constraints"),
        ("label", "The #Rewritten Task#: add three numbers.", "constraints"),
        ("label", "Unlike the given task, add three numbers.", "constraints"),
        ("label", "As in the task above, add three numbers.", "constraints"),
        ("preamble", "**Sure!** Add up three numbers.", "constraints"),
        ("", "Surely you can add up three numbers.", "constraints"),
        ("copy", "  add up `two` NUMBERS", "constraints"),
        ("refused by the model", "I’m sorry, but I can't help with that.", "constraints"),
    ],
)
def test_answers_that_are_no_task_are_known(reason: str, text: str, method: str) -> None:
    reply = Reply(choices=(Choice(text=text, finish_reason="stop"),))
    assert fault(reply, "Add up two numbers.", method) == reason
    cut = Reply(choices=(Choice(text=text, finish_reason="length"),))
    assert fault(cut, "Add up two numbers.", method) == "cut off"


def test_a_method_is_drawn_for_a_problem_and_a_round() -> None:
    drawn = Counter(method_for(7, f"own/{number}", 1) for number in range(9000))
    assert set(drawn) == set(METHODS)
    others = [count for method, count in drawn.items() if method != "complexity"]
    assert 800 < drawn["complexity"] < 1200, "half as often"
    assert all(1800 < count < 2200 for count in others)
    assert method_for(7, "own/1", 1) == method_for(7, "own/1", 1)
    assert len({method_for(7, "own/1", number) for number in range(50)}) == 5


def test_the_message_has_task_and_method_and_no_label() -> None:
    message = evolution("Add {up} two numbers.", "complexity")
    assert "Add {up} two numbers." in message
    assert METHODS["complexity"] in message
    assert not [label for label in LABELS if label in message.lower() and label != "task above"]
    assert not re.search(r"\{\w*\}", message.replace("{up}", ""))
