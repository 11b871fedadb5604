"""Which problems several models solve: the paper's Figure 5 from made-up rows, and what cannot be compared."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pangu_bench import cli
from pangu_bench.rows import GenerationRow, RowFile, VerdictRow

CONFIGURATION = {"suite": "humaneval", "suite_sha256": "ab" * 32, "style": "pangu"}
# Section 4.2 of arXiv 2307.14936, Figure 5, greedy: how many problems exactly these models solve.
FIGURE_5 = {
    ("pangu", "wizard", "star"): 49,
    ("pangu", "wizard"): 32,
    ("pangu", "star"): 3,
    ("wizard", "star"): 1,
    ("pangu",): 18,
    ("wizard",): 16,
    ("star",): 1,
    (): 44,
}

Passed = Mapping[str, Iterable[bool]]  # by problem, a sample each
Overlap = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Overlap:
    """Runs the verb: exit code, the JSON that stdout ends with (or None), stderr."""

    def run(*arguments: object) -> tuple[int, Any, str]:
        code = cli.main(["overlap", *map(str, arguments), "--output", str(tmp_path / "out")])
        captured = capsys.readouterr()
        return code, json.loads(captured.out.splitlines()[-1]) if captured.out else None, captured.err

    return run


def write(path: Path, passed: Passed, *, model: str | None = None, **changes: str) -> Path:
    configuration = {**CONFIGURATION, "subject": {"model": model or path.stem}, **changes}
    with RowFile(path, configuration) as rows:
        for task_id, samples in passed.items():
            for sample, right in enumerate(samples):
                key: dict[str, Any] = {
                    "suite": "humaneval",
                    "style": "pangu",
                    "task_id": task_id,
                    "sample": sample,
                }
                rows.append(
                    GenerationRow(
                        **key,
                        answer="",
                        finish_reason="stop",
                        prompt_tokens=1,
                        completion_tokens=1,
                        seconds=0.1,
                    )
                )
                rows.append(
                    VerdictRow(**key, passed=right, outcome="", detail="", program="", cpu_seconds=0.0)
                )
    return path


def test_the_papers_figure_5(overlap: Overlap, tmp_path: Path) -> None:
    solvers = [models for models, count in FIGURE_5.items() for _ in range(count)]
    files = [
        write(tmp_path / name, {f"HumanEval/{task}": [name in by] for task, by in enumerate(solvers)})
        for name in ("pangu", "wizard", "star")
    ]
    code, report, _ = overlap(*files)
    assert code == 0
    assert {tuple(one["models"]): one["count"] for one in report["sets"]} == FIGURE_5
    assert {one["name"]: one["solved"] for one in report["models"]} == {
        "pangu": 102,
        "wizard": 98,
        "star": 54,
    }
    assert report["sets"][0]["problems"][8:12] == [f"HumanEval/{task}" for task in (8, 9, 10, 11)]
    text = (tmp_path / "out" / "overlap.md").read_text(encoding="utf-8")
    assert "| pangu | 102 (62.20%) |" in text
    assert "| pangu + star | 3 |" in text
    assert "- **pangu + star**: HumanEval/81, HumanEval/82, HumanEval/83\n" in text
    page = (tmp_path / "out" / "overlap.html").read_text(encoding="utf-8")
    assert re.findall(r"<title>([^<]+): (\d+)</title><rect", page) == [
        (one["label"], str(one["count"])) for one in report["sets"]
    ]
    assert json.loads((tmp_path / "out" / "overlap.json").read_text(encoding="utf-8")) == report


def test_one_sample_that_passes_is_enough(overlap: Overlap, tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a": [False, True], "b": [False, False]})
    two = write(tmp_path / "two", {"a": [True, False], "b": [False, True]})
    sets = {one["label"]: one["problems"] for one in overlap(one, two)[1]["sets"]}
    assert sets == {"all": ["a"], "only one": [], "only two": ["b"], "none": []}
    sets = {one["label"]: one["problems"] for one in overlap(one, two, "--samples", "1")[1]["sets"]}
    assert sets == {"all": [], "only one": [], "only two": ["a"], "none": ["b"]}


def test_of_many_models_only_the_sets_that_there_are(overlap: Overlap, tmp_path: Path) -> None:
    files = [write(tmp_path / name, {"a": [True], "b": [name < "c"]}) for name in "abcd"]
    labels = [one["label"] for one in overlap(*files)[1]["sets"]]
    assert labels == ["all", "a + b", "none"]


def test_one_model_in_two_styles(overlap: Overlap, tmp_path: Path) -> None:
    chat = write(tmp_path / "chat", {"a": [True]}, model="m", style="chat")
    plain = write(tmp_path / "plain", {"a": [False]}, model="m", style="completion")
    assert [one["name"] for one in overlap(chat, plain)[1]["models"]] == ["m, chat", "m, completion"]
    code, _, errors = overlap(chat, chat)
    assert (code, errors.count("\n")) == (2, 1)
    assert "two files are of one model in one style" in errors


@pytest.mark.parametrize(
    ("passed", "changes", "words"),
    [
        ({"a": [True]}, {"suite_sha256": "cd" * 32}, "is of another suite than"),
        ({"a": [True], "b": [True]}, {}, "differ in 1 problems"),
        ({"a": [True, True]}, {}, "give --samples 1"),
        ({}, {}, "has no verdicts"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    overlap: Overlap, tmp_path: Path, passed: Passed, changes: dict[str, str], words: str
) -> None:
    files = [write(tmp_path / "one", {"a": [True]}), write(tmp_path / "other", passed, **changes)]
    code, _, errors = overlap(*files)
    assert (code, errors.count("\n")) == (2, 1)
    assert words in errors
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_not_judged_to_its_end_is_refused(overlap: Overlap, tmp_path: Path) -> None:
    file = write(tmp_path / "one", {"a": [True], "b": [True]})
    file.write_bytes(file.read_bytes()[:-10])
    code, _, errors = overlap(file, write(tmp_path / "two", {"a": [True], "b": [True]}))
    assert code == 2
    assert "lacks verdicts on 1 sample(s) of 1 problems" in errors
