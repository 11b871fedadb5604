"""`pangu-convert gptq` on tiny random models, really quantized."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import GPTQ_4, GPTQ_8, GPTQ_MIXED, SMALL, Artifacts, pangu_convert
from support.process import has_ended, wait_for
from support.scripted import byte_tokenizer
from support.tiny import save_tiny

from pangu_convert import cli
from pangu_convert.artifact import read_artifact, verify
from pangu_convert.gptq import fitting_group_size
from pangu_convert.gptq_weights import packed_bits
from pangu_training.stage.checkpoint import read_checkpoint

LONG = ("--samples", "256", "--sequence-length", "256")  # far from done when it is stopped


@pytest.fixture(scope="module")
def bigcode(artifacts: Artifacts) -> Path:
    return artifacts(*GPTQ_4)


@pytest.fixture(scope="module")
def qwen2(artifacts: Artifacts) -> Path:
    return artifacts(*GPTQ_8)


def test_the_folder_holds_weights_configs_and_tokenizer_and_nothing_else(bigcode: Path) -> None:
    assert {file.name for file in bigcode.rglob("*")} == {
        *("model.safetensors", "config.json", "quantize_config.json", "manifest.json"),
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    }
    verify(read_artifact(bigcode))


def test_both_configs_say_what_was_done(bigcode: Path) -> None:
    config = json.loads((bigcode / "config.json").read_text())
    quantization = json.loads((bigcode / "quantize_config.json").read_text())
    assert config["quantization_config"] == quantization
    assert quantization["quant_method"] == quantization["checkpoint_format"] == "gptq"
    assert (quantization["bits"], quantization["group_size"], quantization["desc_act"]) == (4, 128, False)


def test_the_manifest_records_data_and_options(qwen2: Path) -> None:
    manifest = read_artifact(qwen2).manifest
    assert (manifest.format, manifest.quantization) == ("gptq", "gptq-int8-g64")
    assert manifest.library_versions["gptqmodel"]
    calibration = manifest.calibration
    assert calibration is not None
    expected = {"rows": 4, "sequence_length": 64, "tokens": 256, "seed": 0, "act_order": True, "damp": 0.05}
    assert expected.items() <= calibration.items()
    assert calibration["source"].startswith("code: Python 3.")
    assert len(calibration["tokens_sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "embedding"), [("bigcode", "transformer.wte"), ("qwen2", "model.embed_tokens")]
)
def test_a_tied_output_layer_is_written_out(
    request: pytest.FixtureRequest, name: str, embedding: str
) -> None:
    tensors = load_file(request.getfixturevalue(name) / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors[f"{embedding}.weight"])


def test_rope_theta_stands_where_old_loaders_look(qwen2: Path) -> None:
    assert json.loads((qwen2 / "config.json").read_text())["rope_theta"] == 1_000_000.0


def test_only_the_blocks_matrices_are_packed(bigcode: Path) -> None:
    names = load_file(bigcode / "model.safetensors")
    packed = {name.removesuffix(".qweight") for name in names if name.endswith(".qweight")}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert packed == {f"transformer.h.{block}.{layer}" for block in (0, 1) for layer in layers}


def test_the_same_seed_gives_the_same_weights(bigcode: Path, tiny_bigcode: Path, tmp_path: Path) -> None:
    pangu_convert("gptq", tiny_bigcode, "--output", tmp_path / "again", *SMALL)
    again = read_artifact(tmp_path / "again").manifest
    assert again.files["model.safetensors"] == read_artifact(bigcode).manifest.files["model.safetensors"]


def test_the_layers_that_were_named_keep_eight_bits(artifacts: Artifacts) -> None:
    artifact = read_artifact(artifacts(*GPTQ_MIXED))
    tensors = load_file(artifact.path / "model.safetensors")
    packed = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    eight = {
        layer for layer in packed if packed_bits(tensors[f"{layer}.qweight"], tensors[f"{layer}.g_idx"]) == 8
    }
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert eight == {"transformer.h.0.mlp.c_fc", *(f"transformer.h.1.{layer}" for layer in layers)}
    rules = json.loads((artifact.path / "quantize_config.json").read_text())["dynamic"]
    assert {layer for rule in rules for layer in packed if re.match(rule.removeprefix("+:"), layer)} == eight
    assert artifact.manifest.quantization == "gptq-int4-g128+int8"
    assert artifact.manifest.calibration is not None
    assert artifact.manifest.calibration["eight_bits"] == ["c_fc", "last"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eight-bits", "up"], "has no such layer; name first, last, c_attn, c_fc, c_proj"),
        (["--eight-bits", "last", "--bits", "8"], "is for a model of 4 bits"),
        (["--group-size", "96"], "choose from 32, 64, 128, -1"),
        (["--group-size", "256"], "does not divide the input widths of"),
        (["--sequence-length", "512"], "the context length"),
        (["--sequence-length", "0"], "--sequence-length 0 is not within"),
        (["--sequence-length", "15"], "--sequence-length 15 is not within 16 to 256"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--calibration", "nowhere.txt"], "nor a file or folder that exists"),
        (["--chat"], "has no chat template: leave --chat out"),
        (["--damp", "2"], "gptqmodel could not quantize"),  # said by the worker
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    tiny_bigcode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["gptq", str(tiny_bigcode), "--output", str(tmp_path / "out"), *SMALL, *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not any(tmp_path.iterdir())


def test_a_quantized_checkpoint_is_refused(
    bigcode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gptq", str(bigcode), "--output", str(tmp_path / "out")]) == 2
    assert "is quantized already" in capsys.readouterr().err


@pytest.mark.parametrize(("inner", "size"), [(512, None), (192, 64), (96, 32)], ids=["128", "64", "32"])
def test_the_default_group_is_the_largest_that_divides(
    inner: int, size: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_tiny(tmp_path / "tiny", byte_tokenizer(), "gpt_bigcode", n_embd=128, n_inner=inner)
    capsys.readouterr()
    # The rows are drawn after that was said, and there is no such file.
    options = ["--output", str(tmp_path / "out"), "--calibration", str(tmp_path / "nowhere")]
    assert cli.main(["gptq", str(checkpoint), *options]) == 2
    said = capsys.readouterr().err.splitlines()[:-1]
    assert said == ([f"group size {size}, the largest that divides the layers' input widths"] if size else [])
    assert fitting_group_size(read_checkpoint(checkpoint), None) == (size or 128)


def start(checkpoint: Path, output: Path) -> tuple[subprocess.Popen[str], int]:
    """Start the command in a process group of its own; returns it and its worker's process id."""
    command = [
        sys.executable,
        "-m",
        "pangu_convert.cli",
        "gptq",
        str(checkpoint),
        "--output",
        str(output),
        *LONG,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    # A short-lived child tries the tokenizer before.
    wait_for(lambda: worker_of(process) is not None)
    time.sleep(0.5)  # past the start of Python, into the imports
    worker = worker_of(process)
    assert worker is not None
    return process, worker


def worker_of(process: subprocess.Popen[str]) -> int | None:
    """The process that quantizes, once it is there."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"gptq_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def test_ctrl_c_ends_both_processes_with_one_line(tiny_bigcode: Path, tmp_path: Path) -> None:
    process, worker = start(tiny_bigcode, tmp_path / "out")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines() == ["pangu-convert: stopped; run the same command again to go on"]
    wait_for(lambda: has_ended(worker))
    assert not any(tmp_path.iterdir())


def test_kill_takes_the_worker_along_and_leaves_no_artifact(tiny_bigcode: Path, tmp_path: Path) -> None:
    process, worker = start(tiny_bigcode, tmp_path / "out")
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: has_ended(worker))
    assert not (tmp_path / "out").exists()
