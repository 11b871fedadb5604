"""A result file survives its writer, is gone on with, and never mixes configurations."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_bench.rows import (
    GenerationRow,
    LatencyRow,
    MemoryRow,
    Row,
    RowFile,
    RowsError,
    VerdictRow,
    configuration_hash,
    read_rows,
)
from pangu_training.stage.line_file import LineFileError

CONFIGURATION = {"artifact": "abc", "temperature": 0.0, "suites": ["humaneval"]}


def generation(task: int, answer: str = "    return 1\n") -> GenerationRow:
    return GenerationRow(
        suite="humaneval",
        style="chat",
        task_id=f"HumanEval/{task}",
        sample=0,
        answer=answer,
        finish_reason="stop",
        prompt_tokens=100,
        completion_tokens=20,
        seconds=0.5,
    )


VERDICT = VerdictRow(
    suite="humaneval",
    style="chat",
    task_id="HumanEval/0",
    sample=0,
    passed=False,
    outcome="failed",
    detail="AssertionError",
    program="def f(): ...",
    cpu_seconds=0.01,
)
LATENCY = LatencyRow(
    concurrency=1,
    prompt_tokens=64,
    request=0,
    completion_tokens=3,
    ttft_seconds=0.2,
    itl_seconds=(0.03, 0.05),
)
MEMORY = MemoryRow(phase="loading", meter="rss", context_tokens=0, size_bytes=10**9)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    rows: list[Row] = [generation(0), VERDICT, LATENCY, MEMORY]
    with RowFile(path, CONFIGURATION) as file:
        for row in rows:
            file.append(row)
        assert file.of(VerdictRow) == [VERDICT]
    assert read_rows(path) == (CONFIGURATION, rows)
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["hash"] == configuration_hash(
        CONFIGURATION
    )


def test_any_answer_comes_back(tmp_path: Path) -> None:
    rows = [
        generation(task, text) for task, text in enumerate(["", "\r\n\x0b\u2028", "\0\x1a", "\ud800", "🙂"])
    ]
    with RowFile(tmp_path / "rows.jsonl", CONFIGURATION) as file:
        for row in rows:
            file.append(row)
    assert read_rows(tmp_path / "rows.jsonl")[1] == rows


def test_time_per_output_token_is_without_the_first() -> None:
    assert LATENCY.tpot_seconds == pytest.approx(0.04)
    one = LatencyRow(
        concurrency=1, prompt_tokens=64, request=1, completion_tokens=1, ttft_seconds=0.2, itl_seconds=()
    )
    assert one.tpot_seconds is None


def test_a_run_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowFile(path, CONFIGURATION) as file:
        file.append(generation(0))
    with RowFile(path, dict(reversed(CONFIGURATION.items()))) as file:
        assert file.has(GenerationRow, "humaneval", "chat", "HumanEval/0", 0)
        assert not file.has(VerdictRow, "humaneval", "chat", "HumanEval/0", 0)
        assert not file.has(GenerationRow, "humaneval", "chat", "HumanEval/1", 0)
        with pytest.raises(ValueError, match="already"):
            file.append(generation(0))
        file.append(generation(1))
    assert len(read_rows(path)[1]) == 2


def test_every_byte_a_killed_writer_can_leave_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowFile(path, CONFIGURATION) as file:
        file.append(generation(0))
        file.append(generation(1, 'größer "\n'))
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with RowFile(path, CONFIGURATION) as file:
            kept = len(file.rows)
            assert kept == max(whole[:length].count(b"\n") - 1, 0)
            for row in (generation(0), generation(1, 'größer "\n'))[kept:]:
                file.append(row)
        assert path.read_bytes() == whole


def test_a_killed_process_leaves_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    script = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]\n"
        "from pangu_bench.rows import *\n"
        "file = RowFile(pathlib.Path(sys.argv[1]), {})\n"
        "for number in range(10**9):\n"
        "    file.append(MemoryRow(phase='p', meter='m', context_tokens=number, size_bytes=1))\n"
        "    if number == 99: print('ready', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path, *sys.path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
    with RowFile(path, {}) as file:
        assert len(file.rows) >= 100
        assert [row.context_tokens for row in file.of(MemoryRow)] == list(range(len(file.rows)))


def test_another_configuration_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowFile(path, CONFIGURATION) as file:
        file.append(generation(0))
    before = path.read_bytes()
    with pytest.raises(RowsError, match="another temperature: choose"):
        RowFile(path, {**CONFIGURATION, "temperature": 0.2})
    assert path.read_bytes() == before


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowFile(path, CONFIGURATION), pytest.raises(LineFileError, match="another process"):
        RowFile(path, CONFIGURATION)
    with RowFile(path, CONFIGURATION):
        pass


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "{}",
        '{"kind": "memory", "phase": "loading"}',
        '{"kind": "weather"}',
        "[]",
        '{"kind": "memory"',
    ],
)
def test_a_damaged_line_is_refused_and_nothing_is_cut(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    with RowFile(path, CONFIGURATION) as file:
        file.append(MEMORY)
    path.write_text(path.read_text(encoding="utf-8") + f"{line}\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(RowsError, match="line 3 is damaged"):
        RowFile(path, CONFIGURATION)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["my notes", "my notes\n", '{"kind": "memory"}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RowsError, match="not a result file"):
        RowFile(path, CONFIGURATION)
    assert path.read_text(encoding="utf-8") == text


def test_nothing_measured_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="holds no results"):
        read_rows(tmp_path / "absent.jsonl")
