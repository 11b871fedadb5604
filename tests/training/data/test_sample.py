"""Responses from students and teachers: what is asked, kept, and asked again."""

import json
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
from pangu_training.asking import endpoint
from pangu_training.asking.sources import source_of
from pangu_training.data.draws import token_shares
from pangu_training.data.responses import read_responses
from pangu_training.stage.errors import DataError
from pangu_training.stage.line_file import LineFileError

PROBLEMS: tuple[dict[str, Any], ...] = (
    {
        "id": "own/1",
        "prompt": "Write add(a, b).",
        "answers": [
            {"text": "def add(a, b):\n    return a + b\n", "source": "me"},
            {"text": "add = lambda a, b: a + b\n", "source": "me"},
        ],
    },
    {"id": "own/2", "prompt": "Write triple(x)."},
)


class Verb:
    """`pangu-train sample` on two problems: exit code, and what it printed last."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.problems, self.output, self._capsys = (
            folder / "problems.jsonl",
            folder / "responses.jsonl",
            capsys,
        )
        self.problems.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))

    def __call__(self, *arguments: object) -> dict[str, Any]:
        assert cli.main(self.command(*arguments)) == 0, self._capsys.readouterr().err
        shown = self._capsys.readouterr()
        self.shown, self.errors = shown.out, shown.err
        summary: dict[str, Any] = json.loads(shown.out.splitlines()[-1])
        return summary

    def error(self, *arguments: object) -> str:
        assert cli.main(self.command(*arguments)) == 2
        return self._capsys.readouterr().err.splitlines()[-1]

    def command(self, *arguments: object) -> list[str]:
        return ["sample", str(self.problems), "--output", str(self.output), *map(str, arguments)]

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]


@pytest.fixture
def verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verb:
    return Verb(tmp_path, capsys)


def n_texts(body: dict[str, Any]) -> Answer:
    """As many different answers as are asked for."""
    return [f"answer {i}" for i in range(body.get("n", 1))]


def test_each_source_is_asked_in_its_style_at_each_temperature(verb: Verb) -> None:
    with answering(n_texts) as student, answering(n_texts) as teacher:
        summary = verb(
            *("--student", f"mine={student.address}", "--teacher", f"big={teacher.address}/v1", "--recorded"),
            *("--samples", 3, "--temperatures", 0.2, 0.8, "--max-tokens", 50),
        )
        assert {body["prompt"] for body in student.bodies} == {
            '"""\nWrite add(a, b).\n"""\n',
            '"""\nWrite triple(x).\n"""\n',
        }
        assert all("Write" in body["messages"][0]["content"] for body in teacher.bodies)
        asked = [(body["n"], body["temperature"], body["max_tokens"]) for body in teacher.bodies]
        assert Counter(asked) == {(3, 0.2, 50): 2, (3, 0.8, 50): 2}, "a request a problem and temperature"
        assert verb("--student", f"mine={student.address}", "--samples", 3, "--max-tokens", 50)[
            "of_other_runs"
        ]
        assert len(student.bodies) == 4, "what is there is not asked again"
    responses = read_responses(verb.output)
    drawn = [response for response in responses if response.style != "recorded"]
    assert Counter((r.role, r.source, r.style, r.model) for r in drawn) == {
        ("student", "mine", "pangu", "written/down"): 12,
        ("teacher", "big", "chat", "written/down"): 12,
    }
    assert {(r.problem, r.temperature, r.sample, r.text) for r in drawn} == {
        (problem["id"], temperature, sample, f"answer {sample}")
        for problem in PROBLEMS
        for temperature in (0.2, 0.8)
        for sample in range(3)
    }
    recorded = [response for response in responses if response.style == "recorded"]
    assert [(r.problem, r.role, r.source, r.sample, r.text) for r in recorded] == [
        ("own/1", "teacher", "me", sample, answer["text"])
        for sample, answer in enumerate(PROBLEMS[0]["answers"])
    ]
    assert summary["recorded"] == 2
    assert summary["sources"]["mine"]["temperatures"] == {"0.2": 6, "0.8": 6}
    assert summary["sources"]["big"]["finish_reasons"] == {"stop": 12}
    assert summary["sources"]["big"]["completion_tokens"] == 60


def test_only_what_is_missing_is_asked(verb: Verb) -> None:
    with answering(n_texts) as server:
        teacher = ("--teacher", f"big={server.address}", "--temperatures", 0.8)
        verb(*teacher, "--samples", 2)
        summary = verb(*teacher, "--samples", 5)
        assert [body["n"] for body in server.bodies] == [2, 2, 3, 3]
        assert (summary["sources"]["big"]["responses"], summary["sources"]["big"]["drawn"]) == (10, 6)
        assert summary["of_other_runs"] == 0
        server.card = {**server.card, "quantization": "int8"}
        summary = verb(*teacher, "--samples", 5)
        assert summary["sources"]["big"]["drawn"] == 10, "another quantization is another model"
        assert summary["of_other_runs"] == 10
        assert len({row["key"] for row in verb.rows()}) == 20


@pytest.mark.parametrize("n_is", ["refused", "ignored"])
def test_a_server_without_n_is_asked_one_by_one(verb: Verb, n_is: str) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return 400 if n_is == "refused" and "n" in body else "one"

    with answering(answer) as server:
        verb("--teacher", f"big={server.address}", "--samples", 3, "--temperatures", 0.8, "--concurrency", 1)
        assert [body.get("n", 1) for body in server.bodies[1:]] == [1] * (len(server.bodies) - 1)
    assert sorted((row["problem"], row["sample"]) for row in verb.rows()) == [
        (problem["id"], sample) for problem in PROBLEMS for sample in range(3)
    ]


def test_with_a_seed_sample_i_has_the_seed_plus_i(verb: Verb) -> None:
    with answering(n_texts) as server:
        verb("--teacher", f"big={server.address}", "--samples", 3, "--temperatures", 0.8, "--seed", 7)
        assert Counter(body["seed"] for body in server.bodies) == {7: 2, 8: 2, 9: 2}
        assert not any("n" in body for body in server.bodies)


def test_servers_share_the_requests_and_one_that_dies_is_left_out(
    verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)
    first, answered = threading.Lock(), threading.Event()

    def answer_and_die(body: dict[str, Any]) -> Answer:
        if not first.acquire(blocking=False):
            return None
        answered.set()
        return n_texts(body)

    def answer_when_the_other_has(body: dict[str, Any]) -> Answer:
        assert answered.wait(30)
        return n_texts(body)

    with answering(answer_and_die) as dying, answering(answer_when_the_other_has) as living:
        both = f"big={dying.address},{living.address}"
        summary = verb("--teacher", both, "--temperatures", 0.1, 0.2, 0.3, 0.4, "--concurrency", 2)
        assert f"warning: big: left out: the server at {dying.address} is gone" in verb.errors
        assert summary["sources"]["big"]["drawn"] == 8
        assert len(living.bodies) == 7
    assert len({row["key"] for row in verb.rows()}) == len(verb.rows()) == 8


def test_what_a_dying_server_gives_back_last_is_still_asked(
    verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)
    answered = threading.Event()

    def die_last(body: dict[str, Any]) -> Answer:
        assert answered.wait(30)
        return None

    def answer(body: dict[str, Any]) -> Answer:
        answered.set()
        return n_texts(body)

    with answering(die_last) as dying, answering(answer) as living:
        verb("--teacher", f"big={dying.address},{living.address}", "--temperatures", 0.8, "--concurrency", 1)
        assert len(living.bodies) == 2
    assert {row["problem"] for row in verb.rows()} == {"own/1", "own/2"}


def test_what_came_before_the_last_server_died_is_kept(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)
    with answering(lambda body: "one" if len(server.bodies) == 1 else None) as server:
        teacher = ("--teacher", f"big={server.address}", "--temperatures", 0.8, "--concurrency", 1)
        assert "run the same command again" in verb.error(*teacher)
        assert [row["problem"] for row in verb.rows()] == ["own/1"]
        server.answer = n_texts
        assert verb(*teacher)["sources"]["big"]["drawn"] == 1


def test_a_server_that_is_not_there_is_left_out_from_the_start(verb: Verb) -> None:
    with answering(n_texts) as gone:
        pass
    with answering(n_texts) as server:
        verb("--teacher", f"big={gone.address},{server.address}")
        assert f"warning: big: left out: no OpenAI-style server answers at {gone.address}" in verb.errors
        assert f"answers at {gone.address}" in verb.error("--teacher", f"big={gone.address}")
        with answering(n_texts) as other:
            other.card = {**other.card, "quantization": "int8"}
            assert "one model" in verb.error("--teacher", f"big={server.address},{other.address}")
            assert "no model 'x'" in verb.error("--teacher", f"big={server.address}#x")
        assert verb("--teacher", f"big={server.address}#written/down")["sources"]["big"]["drawn"] == 0


def test_a_refused_problem_does_not_stop_the_others(verb: Verb) -> None:
    with answering(lambda body: 400 if "triple" in body["prompt"] else n_texts(body)) as server:
        student = ("--student", f"mine={server.address}", "--samples", 2)
        report = verb(*student)["sources"]["mine"]
        assert (report["responses"], report["refused"]) == (4, 2)
        assert "WARNING: 2 requests were refused: mine, own/2: the server said 400" in verb.shown
        server.answer = lambda body: 400
        assert verb(*student)["sources"]["mine"]["refused"] == 2
        assert "mine refuses every problem" in verb.error(*student, "--student-style", "wizardcoder")


def test_a_model_that_does_not_end_is_pointed_out(verb: Verb) -> None:
    with answering(lambda body: (" ", "length")) as server:
        report = verb("--student", f"mine={server.address}")["sources"]["mine"]
        assert (report["cut_off"], report["empty"]) == (1, 1)
        assert "WARNING: most are cut off" in verb.shown
        assert "WARNING: most are empty" in verb.shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nobody to ask"),
        (("--recorded", "--temperatures", 0, 0.2, "--samples", 2), "all alike"),
        (("--student", "a=http://h", "--teacher", "a=http://h"), "2 sources are called a"),
        (("--student", "a=nowhere"), "nowhere is not an artifact"),
    ],
)
def test_what_cannot_be_sampled_is_said_at_once(
    verb: Verb, arguments: tuple[object, ...], message: str
) -> None:
    assert message in verb.error(*arguments)
    assert not verb.output.exists()


def test_a_killed_run_goes_on_and_asks_nothing_twice(verb: Verb) -> None:
    stuck, free = threading.Event(), threading.Event()

    def answer(body: dict[str, Any]) -> Answer:
        if len(server.bodies) == 3 and not free.is_set():
            stuck.set()
            free.wait(30)
        return n_texts(body)

    with answering(answer) as server:
        teacher = ("--teacher", f"big={server.address}", "--samples", 2, "--concurrency", 1, "--recorded")
        command = [sys.executable, "-m", "pangu_training.cli", *verb.command(*teacher)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            assert stuck.wait(30)
            process.kill()
        free.set()
        before = verb.rows()
        assert len(before) == 2 + 2 * 2
        with verb.output.open("a") as file:
            file.write('{"key": "cut sh')  # as a kill within a write leaves it
        assert verb(*teacher)["sources"]["big"]["drawn"] == 4
        requests = Counter((body["messages"][0]["content"], body["temperature"]) for body in server.bodies)
        assert sorted(requests.values()) == [1, 1, 1, 2], "but the one that was under way"
    assert verb.rows()[: len(before)] == before
    assert len({row["key"] for row in verb.rows()}) == len(verb.rows()) == 2 + 4 * 2


def test_an_artifact_is_served_only_while_something_is_missing(
    verb: Verb, artifacts: Callable[..., Path]
) -> None:
    artifact = artifacts("tiny_starcoder", "ctranslate2", "--quantization", "int8")
    options = ("--student", f"mine={artifact}", "--threads", 1, "--max-tokens", 6, "--samples", 2)
    report = verb(*options)["sources"]["mine"]
    assert (report["drawn"], report["model"]) == (
        8,
        json.loads((artifact / "manifest.json").read_text())["name"],
    )
    assert all(response.seconds and response.prompt_tokens for response in read_responses(verb.output))
    log = verb.output.with_name("responses.mine.server.log")
    log.unlink()
    assert verb(*options)["sources"]["mine"]["drawn"] == 0
    assert not log.exists()


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    def identity(**changes: Any) -> object:
        manifest = {"name": "mine", "files": {"model.bin": {"sha256": "0"}}, "scores": {}, **changes}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return source_of("student", "mine", str(tmp_path), "pangu").identity

    assert identity() == identity(scores={"humaneval": 1})
    assert identity() != identity(files={"model.bin": {"sha256": "1"}})


def test_two_served_models_of_one_name_and_size_are_told_apart() -> None:
    cards = [{"weight_bytes": 1, "sha256": sha256} for sha256 in "ab"]
    one, other = (endpoint.Endpoint(base_url="", model="mine", card=card) for card in cards)
    assert endpoint.identity(one) != endpoint.identity(other)


def test_shares_of_tokens_add_up() -> None:
    assert token_shares(10, ["same", "same"]) == [5, 5]
    assert token_shares(8, ["", "a text of five words"]) == [0, 8]
    assert token_shares(1, ["", "", ""]) == [0, 0, 1]
    assert sum(token_shares(101, ["a", "bcd", "", "e" * 50])) == 101


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "pupil"}, "line 2 is damaged .its role is 'pupil'"),
        ({"sample": True}, "its sample is True"),
        ({"text": None}, "its text is None"),
        ({"source": ...}, "it has no source"),
    ],
)
def test_a_wrong_response_is_named(verb: Verb, change: dict[str, Any], message: str) -> None:
    verb("--recorded")
    row = {name: value for name, value in {**verb.rows()[0], **change}.items() if value is not ...}
    lines = [json.dumps(verb.rows()[0]), json.dumps(row), ""]
    verb.output.write_text("\n".join(lines))
    with pytest.raises(LineFileError, match=message):
        read_responses(verb.output)
    verb.output.write_text("")
    with pytest.raises(DataError, match="has no responses"):
        read_responses(verb.output)
    verb.output.unlink()
    with pytest.raises(DataError, match="is not there"):
        read_responses(verb.output)
