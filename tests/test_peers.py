"""`docs/scripts/peers.py` with two of our own servers: no peer is built or installed here."""

import itertools
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.commands import Artifacts

SCRIPTS = ROOT / "docs" / "scripts"


def peers(*arguments: object, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPTS / "peers.py", *arguments, "--peers", "--output", output]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "peers.jsonl").read_text().splitlines()]


def test_systems_are_measured_in_turn_and_only_once(
    tmp_path: Path, artifacts: Artifacts, tiny_starcoder: Path
) -> None:
    artifact = artifacts("tiny_starcoder", "ctranslate2", "--quantization", "float32")
    serve = (
        f"{Path(sys.executable).with_name('pangu-serve')} {artifact} --port {{port}} --threads {{threads}}"
    )
    wanted = ("--measures", "decode", "--decode-threads", 1, "--requests", 3, "--checkpoint", tiny_starcoder)
    systems = (f"llama-server={artifact},--max-batch 2", f"other={serve}")

    first = peers(*systems, *wanted, "--rounds", 1, output=tmp_path)
    assert first.returncode == 0, first.stderr
    again = peers(*systems, *wanted, "--rounds", 2, output=tmp_path)
    assert again.returncode == 0, again.stderr

    found = rows(tmp_path)
    assert [(row["round"], row["system"]) for row in found] == [
        (0, "llama-server"),
        (0, "other"),
        (1, "other"),  # each round begins with another one
        (1, "llama-server"),
    ]
    for row in found:
        assert len(row["timings"]) == 3
        gaps = [(last - first) / 63 for first, last in row["timings"]]
        assert row["figures"] == {"ms/token": pytest.approx(1e3 * statistics.median(gaps))}
        assert row["runs"]["backend"] == "ctranslate2"
    assert "--max-batch 2" in found[0]["command"]
    by_round = {(row["round"], row["system"]): row["figures"]["ms/token"] for row in found}
    ratios = [by_round[turn, "llama-server"] / by_round[turn, "other"] for turn in (0, 1)]
    shown = (tmp_path / "peers.md").read_text()
    assert f"; {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})x |" in shown
    assert re.search(r"avx2|no vector extension", shown)


def test_a_system_that_does_not_start_is_named_and_the_others_are_measured(
    tmp_path: Path, artifacts: Artifacts, tiny_starcoder: Path
) -> None:
    artifact = artifacts("tiny_starcoder", "ctranslate2", "--quantization", "float32")
    wanted = ("--measures", "decode", "--decode-threads", 1, "--requests", 1, "--checkpoint", tiny_starcoder)
    done = peers("broken=false {port}", f"good={artifact}", *wanted, "--rounds", 1, output=tmp_path)
    assert done.returncode == 1
    assert "broken, decode, 1 thread: it does not start" in done.stderr
    assert [row["system"] for row in rows(tmp_path)] == ["good"]


def test_wrong_systems_are_refused(tmp_path: Path) -> None:
    for system, words in (
        ("name", "'name' is not NAME=ARTIFACT or NAME=COMMAND"),
        (f"name={tmp_path}", "is no artifact, and a COMMAND has {port} in it"),
    ):
        done = peers(system, output=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.mark.usefixtures("scripts")
def test_an_editor_sends_its_file_again_with_some_more() -> None:
    import peers_workloads

    file = list(range(5000))
    code = peers_workloads.Code([file, file[:100]], "seed")
    sent = [list(request.prompt) for request in peers_workloads.typed(code, 4)]
    assert [len(prompt) for prompt in sent] == [1500, 1505, 1510, 1515]
    assert all(after[: len(before)] == before for before, after in itertools.pairwise(sent))
    assert peers_workloads.typed(peers_workloads.Code([file], "other"), 1)[0].prompt[0] != sent[0][0]


@pytest.mark.usefixtures("scripts")
def test_mixed_requests_have_every_pair_of_lengths() -> None:
    import peers_workloads

    requests = peers_workloads.mixed(peers_workloads.Code([list(range(1000))], "seed"), 14)
    pairs = {(len(request.prompt), request.new_tokens) for request in requests}
    assert len(pairs) == 14
    assert {23, 482} <= {length for length, _ in pairs}
