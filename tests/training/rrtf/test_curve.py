"""`pangu-train curve` trains parts of the data as `fit` does, goes on, and draws what came out."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.ranked_rows import constant_problems, constant_rows

from pangu_training import cli
from pangu_training.data.ranked import write_ranked
from pangu_training.rrtf.curve import parts, picture
from pangu_training.rrtf.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")


def pangu_train(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny_starcoder: Path) -> list[object]:
    """A curve of 8 and 64 pairs over one epoch, but for --output."""
    folder = tmp_path_factory.mktemp("curve")
    write_ranked(folder / "rows.jsonl", constant_rows(64))
    problems = constant_problems(folder / "problems.jsonl", 3)
    flags = (
        "--max-length",
        128,
        "--global-batch",
        8,
        "--micro-batch",
        8,
        "--epochs",
        1,
        "--learning-rate",
        1e-2,
    )
    asked = ("--held-out-problems", problems, "--held-out-max-tokens", 16)
    return ["curve", folder / "rows.jsonl", "--sizes", 64, 8, "--checkpoint", tiny_starcoder, *flags, *asked]


@pytest.fixture(scope="module")
def drawn(command: list[object]) -> Path:
    folder = Path(str(command[1])).with_name("drawn")
    assert pangu_train(*command, "--output", folder) == 0
    return folder


def test_parts_are_random_and_nested() -> None:
    rows = constant_rows(20)
    small, large = parts(rows, [5, 12], seed=0)
    assert large[:5] == small != tuple(rows[:5])
    assert len({row.id for row in large}) == 12
    assert parts(rows, [5], seed=0) == [small] != parts(rows, [5], seed=1)


def test_more_data_solves_more(
    drawn: Path, command: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((drawn / "curve.json").read_text())
    small, large = report["runs"]
    assert [(one["name"], one["pairs"]) for one in report["runs"]] == [("size-8", 8), ("size-64", 64)]
    assert [(at["epoch"], at["step"]) for at in large["epochs"]] == [(0, 0), (1, 8)]
    assert [at["pass_at_1"] for at in small["epochs"]] == [0, 0]
    assert [at["pass_at_1"] for at in large["epochs"]] == [0, 1]
    assert large["epochs"][1]["interval"][0] == pytest.approx(0.438, abs=0.001)
    steps = [entry for entry in Run(drawn / "size-64").metrics if "loss" in entry]
    mean = sum(entry["rank_loss"] for entry in steps) / len(steps)
    assert large["epochs"][1]["rank_loss"] == pytest.approx(mean)
    assert (
        "| size-64 | 64 | 0.0% (0.0% to 56.1%) | 100.0% (43.9% to 100.0%) |"
        in (drawn / "curve.md").read_text()
    )

    assert pangu_train(*command, "--output", drawn) == 0
    shown = capsys.readouterr().out
    assert shown.count("the run is finished") == 2
    assert json.loads(shown.splitlines()[-1]) == report


def test_finished_runs_are_drawn_alone(drawn: Path, tmp_path: Path) -> None:
    runs = [drawn / "size-8", drawn / "size-64"]
    assert pangu_train("curve", "--runs", *runs, "--output", tmp_path / "again") == 0
    for name in ("curve.md", "curve.svg", "curve.json"):
        assert (tmp_path / "again" / name).read_text() == (drawn / name).read_text()


def test_the_picture_stands_alone(drawn: Path) -> None:
    report = json.loads((drawn / "curve.json").read_text())
    text = picture(report)
    assert text == (drawn / "curve.svg").read_text()
    ElementTree.fromstring(text)
    assert ".c1 { color:" in text
    assert ">64 pairs</text>" in text
    assert text.count("<circle") == 2 * 2 + 2, "a point an epoch and run, and the legend"
    twice = {**report, "runs": [report["runs"][0], {**report["runs"][0], "name": "<other>"}]}
    assert ">&lt;other&gt;</text>" in picture(twice), "runs of one size go by their names"


def test_the_model_card_has_pass_at_1(drawn: Path, tmp_path: Path) -> None:
    assert pangu_train("export", drawn / "size-64", "--output", tmp_path / "tuned") == 0
    assert (
        "one greedy answer each: 0.0% before, 100.0% after" in (tmp_path / "tuned" / "README.md").read_text()
    )


def other_problems(run: Path) -> None:
    description = Run(run).description
    description["held_out_problems"]["sha256"] = "another"
    (run / "run.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: shutil.rmtree(run / "final"), "is not a finished run"),
        (other_problems, "were asked different problems"),
    ],
)
def test_runs_that_cannot_be_compared(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    copy = shutil.copytree(drawn / "size-8", tmp_path / "size-8")
    change(copy)
    assert pangu_train("curve", "--runs", drawn / "size-64", copy, "--output", tmp_path / "curve") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "curve").exists()


def test_what_cannot_work_is_said_first(
    drawn: Path, command: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ((*command, "--sizes", 65, "--output", tmp_path / "new"), "has 64 pairs that fit"),
        ((*command[:4], "--output", tmp_path / "new"), "give the ranked pairs, --sizes"),
        ((*command, "--runs", drawn / "size-8", "--output", tmp_path / "new"), "--runs and none of these"),
        (("curve", "--runs", drawn / "size-8", "--output", drawn), "is a curve with size-64"),
    ):
        assert pangu_train(*arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
