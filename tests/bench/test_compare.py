"""Artifacts measured through the real server: a tiny model with random weights, and one that is broken."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.answering import answering
from support.commands import Artifacts, pangu_convert
from support.process import Server, has_ended, wait_for
from support.tiny import save_tiny
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pangu_bench import cli
from pangu_bench.rows import GenerationRow, ServedRow, read_rows
from pangu_convert import cli as convert_cli
from pangu_convert.artifact import read_artifact, verify
from pangu_training.stage.identity import MANIFEST

BLOCK_MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
ROWS = [
    {
        "task_id": f"Own/{number}",
        "prompt": f'def add_{number}(x):\n    """ {number} more than x """\n',
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(4) == {4 + number}\n",
    }
    for number in range(10)
]
FEW = (
    "--prompt-tokens",
    "8",
    "16",
    "--new-tokens",
    "4",
    "--context",
    "64",
    "--warmup",
    "1",
    "--repeats",
    "2",
    "--keystrokes",
    "0",  # the context of these models has no room for a file
)


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "own.jsonl"
    return write_suite(path, 3)


def write_suite(path: Path, count: int) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:count]), encoding="utf-8")
    return f"humaneval:{path}"


@pytest.fixture
def artifact(artifacts: Artifacts, tmp_path: Path) -> Path:
    """One of our own: scores are written into it."""
    made = artifacts("tiny_starcoder", "ctranslate2", "--quantization", "float32")
    return Path(shutil.copytree(made, tmp_path / "artifact"))


@pytest.fixture
def broken(tiny_starcoder: Path, tmp_path: Path) -> Path:
    """The same model with weights that are all zero: it ends at once, as some GPTQ files of StarCoder do."""
    checkpoint = shutil.copytree(tiny_starcoder, tmp_path / "zero")
    model = AutoModelForCausalLM.from_pretrained(tiny_starcoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.save_pretrained(checkpoint)
    pangu_convert("ctranslate2", checkpoint, "--output", tmp_path / "broken", "--quantization", "float32")
    return tmp_path / "broken"


@pytest.fixture
def taught(starcoder: Tokenizer, tmp_path: Path) -> Path:
    """A tiny model that has learnt the suite by heart, slowly: so int8 is close to it on any CPU."""
    checkpoint = save_tiny(tmp_path / "taught", starcoder, "gpt_bigcode", n_embd=64, n_inner=128)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompts, answers = (
        torch.tensor([starcoder.encode(row[name]).ids for row in ROWS])
        for name in ("prompt", "canonical_solution")
    )
    answers = torch.cat([answers, torch.zeros(len(ROWS), 1, dtype=torch.long)], dim=1)  # the end of text
    inputs = torch.cat([prompts, answers[:, :-1]], dim=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other crawl when a test machine is busy
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(200):
        states = model.transformer(inputs).last_hidden_state[:, -answers.shape[1] :]
        loss = torch.nn.functional.cross_entropy(model.lm_head(states).flatten(0, 1), answers.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.02:
            break
    torch.set_num_threads(threads)
    model.save_pretrained(checkpoint)
    return checkpoint


@pytest.fixture
def shuffled(taught: Path, tmp_path: Path) -> Path:
    """That model's int8 artifact from a converter that gets the rows of its matrices in the wrong order."""
    checkpoint = Path(shutil.copytree(taught, tmp_path / "shuffled-checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    dice = torch.Generator().manual_seed(0)
    for name, matrix in weights.items():
        if name.endswith(BLOCK_MATRICES):
            weights[name] = matrix[torch.randperm(len(matrix), generator=dice)].contiguous()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    pangu_convert("ctranslate2", checkpoint, "--output", tmp_path / "shuffled", "--name", "shuffled")
    pangu_convert("ctranslate2", taught, "--output", tmp_path / "sound", "--name", "sound")
    broken, sound = read_artifact(tmp_path / "shuffled"), read_artifact(tmp_path / "sound")
    manifest = dataclasses.replace(broken.manifest, source=sound.manifest.source)
    (broken.path / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return broken.path


def test_an_artifact_that_its_conversion_broke_is_flagged(
    shuffled: Path, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--against", str(taught), "--windows", "2", "--window-tokens", "64")
    sound = shuffled.with_name("sound")
    verify_words = [["verify", str(path), *small] for path in (sound, shuffled)]
    assert [convert_cli.main(words) for words in verify_words] == [0, 1]
    capsys.readouterr()
    suite = write_suite(tmp_path / "own.jsonl", len(ROWS))
    words = ["compare", sound, shuffled, "--suite", suite, "--max-tokens", "12", *FEW, "--threads", "1"]
    assert cli.main([str(word) for word in (*words, "--output", tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    good, bad = report["artifacts"]
    assert good["score"]["pass_at_k"]["1"] == 1
    assert (good["fidelity_outside"], good["score"]["warnings"]) == ([], [])
    [pair] = report["pairs"]
    assert len(pair["lost"]) >= 8
    assert pair["verdict"].startswith("real: -")
    assert any(words.startswith("mean KL") for words in bad["fidelity_outside"])
    table = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    warnings = table.split("## Warnings")[1].split("## ")[0]
    assert "**shuffled**: mean KL" in warnings
    assert "**sound**" not in warnings


def test_an_artifact_beside_a_server_that_runs(
    artifact: Path, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(artifact)
    words = [
        "compare",
        artifact,
        "--base-url",
        f"{server.address}/v1=there",
        "--suite",
        suite,
        "--max-tokens",
        "8",
    ]
    command = [str(word) for word in (*words, *FEW, "--threads", "1", "--output", tmp_path / "out")]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    here, there = json.loads(text.splitlines()[-1])["artifacts"]
    assert (there["name"], there["quantization"]) == ("there", "float32")
    assert there["costs"]["served"] == here["costs"]["served"]
    assert [one["requests"] for one in there["costs"]["latency"]] == [2, 2]
    assert not any(there["costs"]["memory"].values()), "memory is not known from outside"
    assert "| there | float32, computed in float32 | — |" in text
    assert json.loads(text.splitlines()[-1])["pairs"][0]["verdict"].startswith("no difference")
    completions = server.metric("vllm:request_success_total")
    assert cli.main(command) == 0
    assert server.metric("vllm:request_success_total") == completions, "what is there is not measured again"

    words = ["load", "--base-url", f"{server.address}=there", "--prompt-tokens", "8", "--new-tokens", "4"]
    command = [
        str(word) for word in (*words, "--requests", "3", "--concurrency", "2", "--output", tmp_path / "out")
    ]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    [level] = json.loads(text.splitlines()[-1])["levels"]
    assert level["tokens_per_second"] * level["seconds"] == pytest.approx(3 * 4)
    assert "A server that ran already" in text
    assert server.terminate() == 0


def test_of_a_server_without_a_tokenizer_only_the_score_is_known(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solutions = {row["prompt"]: row["canonical_solution"] for row in ROWS}
    with answering(lambda body: solutions[body["prompt"]]) as server:
        words = ["compare", "--base-url", server.address, "--suite", suite, "--output", tmp_path / "out"]
        assert cli.main([str(word) for word in words]) == 0
        refused = cli.main(["load", "--base-url", server.address, "--output", str(tmp_path / "out")])
    captured = capsys.readouterr()
    table, [known] = captured.out, json.loads(captured.out.splitlines()[-1])["artifacts"]
    assert known["score"]["pass_at_k"] == {"1": 1.0}
    assert known["costs"]["latency"] == []
    assert "**written/down**: latency is not measured: " in table
    assert "**written/down**: the editor's TTFT is not measured: " in table
    assert refused == 2
    assert "has no /tokenize" in captured.err


def test_a_comparison_and_its_repetition(
    artifact: Path, broken: Path, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["compare", artifact, broken, "--suite", suite, "--max-tokens", "8", *FEW]
    command = [str(word) for word in (*words, "--threads", "1", "--output", output)]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    report = json.loads(text.splitlines()[-1])
    assert report == json.loads((output / "compare.json").read_text(encoding="utf-8"))
    table = (output / "compare.md").read_text(encoding="utf-8")
    assert text.startswith(table)
    page = (output / "compare.html").read_text(encoding="utf-8")
    assert page.count("<figure>") >= 3  # a tiny model can be too fast for gaps between its events
    assert "3 of 3 answers are empty" in page
    assert not re.search(r"<script|src=|href=|url\(", page), "it must open without a network"

    whole, zero = report["artifacts"]
    assert zero["score"]["warnings"][0].startswith("3 of 3 answers are empty")
    assert f"**{zero['name']}**: 3 of 3 answers are empty" in table
    assert not any("empty" in warning for warning in whole["score"]["warnings"])
    assert whole["score"]["gold"]["passed"] == 3
    assert all(one["ttft_seconds"]["min"] > 0 for one in whole["costs"]["latency"])
    assert report["pairs"][0]["baseline"] == whole["name"]
    for costs in (whole["costs"], zero["costs"]):
        memory, latency = costs["memory"], costs["latency"]
        assert costs["weight_bytes"] < memory["loaded_bytes"] <= memory["generating_bytes"]
        assert (memory["meter"], memory["context_tokens"]) == ("pss", 64)
        assert [(one["prompt_tokens"], one["new_tokens"], one["requests"]) for one in latency] == [
            (8, 4, 2),
            (16, 4, 2),
        ]
        assert costs["served"]["compute_type"] == "float32"

    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["artifacts"][0]["costs"] == whole["costs"]
    rows = read_rows(output / f"{whole['name']}.costs.jsonl")[1]
    assert sum(isinstance(row, ServedRow) for row in rows) == 1, "what is there is not measured again"

    file = output / f"{whole['name']}.costs.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-4]) + lines[-4][:40])  # killed in the midst of a line
    assert cli.main(command) == 0
    costs = json.loads(capsys.readouterr().out.splitlines()[-1])["artifacts"][0]["costs"]
    before, after = whole["costs"]["latency"][0], costs["latency"][0]
    assert after["ttft_seconds"] == before["ttft_seconds"], "what was whole stays"
    assert sum(isinstance(row, ServedRow) for row in read_rows(file)[1]) == 2

    verify(read_artifact(artifact))  # what was recorded did not touch anything else
    server = Server(artifact)
    card = httpx.get(f"{server.address}/v1/models", timeout=60).json()["data"][0]
    assert card["scores"]["humaneval-form"]["pass_at_k"] == whole["score"]["pass_at_k"]
    assert card["scores"]["costs"]["memory"] == costs["memory"]
    assert "humaneval" not in card["scores"], "three problems in its form are not HumanEval"
    assert server.terminate() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on(
    artifact: Path, suite: str, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "out"
    command: list[str | Path] = [sys.executable, "-m", "pangu_bench.cli", "humaneval", artifact]
    command += ["--suite", suite, "--temperature", "1", "--max-tokens", "4", "--threads", "1"]
    command += ["--output", output]
    file = output / "tiny-starcoder-float32.humaneval-form.completion.jsonl"
    with subprocess.Popen(
        [*command, "--samples", "2000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as bench:
        wait_for(lambda: file.is_file() and file.read_bytes().count(b"\n") >= 5)
        children = Path(f"/proc/{bench.pid}/task/{bench.pid}/children").read_text(encoding="ascii").split()
        bench.send_signal(number)
        out, errors = bench.communicate()
    assert out == ""
    if number == signal.SIGINT:
        assert (bench.returncode, errors) == (
            130,
            "pangu-bench: stopped; run the same command again to go on\n",
        )
    assert len(children) == 1
    wait_for(lambda: has_ended(children[0]))

    before = file.read_bytes()
    again = subprocess.run([*command, "--samples", "3"], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout.splitlines()[-1])["samples"] == "3x3"
    assert file.read_bytes().startswith(before[: before.rfind(b"\n") + 1]), "what was there stays"
    keys = [(row.task_id, row.sample) for row in read_rows(file)[1] if isinstance(row, GenerationRow)]
    assert len(keys) == len(set(keys))


def test_a_score_of_some_problems_is_not_recorded(artifact: Path, suite: str, tmp_path: Path) -> None:
    words: list[Any] = ["humaneval", artifact, "--suite", suite, "--max-tokens", "4", "--limit", "1"]
    command = [str(word) for word in (*words, "--threads", "1", "--output", tmp_path / "out")]
    assert cli.main(command) == 0
    assert read_artifact(artifact).manifest.scores == {}


def test_a_server_that_does_not_start_says_why(
    artifact: Path, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (artifact / "model.bin").stat().st_size
    (artifact / "model.bin").write_bytes(b"\0" * size)
    words = ["humaneval", artifact, "--suite", suite, "--output", tmp_path / "out"]
    assert cli.main([str(word) for word in words]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "changed since the conversion" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--context", "4096"), "has a context of 256 tokens"),
        (("--context", "64", "--prompt-tokens", "250"), "has a context of 256 tokens"),
        (("--context", "64", "--new-tokens", "64"), "--new-tokens 64, must fit"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_starts(
    artifact: Path,
    suite: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    command = ["compare", str(artifact), "--suite", suite, "--output", str(tmp_path / "out"), *arguments]
    assert cli.main(command) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert words in errors


def test_two_artifacts_of_one_name_are_refused(
    artifact: Path, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", str(artifact), str(artifact), "--suite", suite, "--output", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "have one name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare"], "give an artifact or --base-url"),
        (["load"], "give one of an artifact and --base-url"),
        (
            ["compare", "--base-url", "http://127.0.0.1:9=peer"],
            "no OpenAI-style server answers at http://127.0.0.1:9:",
        ),
    ],
)
def test_nothing_to_measure_is_said(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    options = ["--suite", suite] if words[0] == "compare" else []
    assert cli.main([*words, *options, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_load_at_several_levels_and_one_more_later(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["load", artifact, "--prompt-tokens", "8", "20", "--new-tokens", "4", "6", "--requests", "5"]
    command = [str(word) for word in (*words, "--threads", "1", "--output", tmp_path / "out")]
    assert cli.main([*command, "--concurrency", "1", "3"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])["levels"]
    assert [(level["concurrency"], level["requests"]) for level in first] == [(1, 5), (3, 5)]
    tokens = [level["tokens_per_second"] * level["seconds"] for level in first]
    assert tokens == pytest.approx([4 + 6 + 4 + 6 + 4] * 2)
    assert cli.main([*command, "--concurrency", "1", "2", "3"]) == 0
    text = capsys.readouterr().out
    later = json.loads(text.splitlines()[-1])["levels"]
    assert [later[0], later[2]] == first, "what is there is not measured again"
    assert later[1]["concurrency"] == 2
    assert "# tiny-starcoder-float32 under load" in text
