"""Conversions: what an artifact holds, what is refused, and that a killed or starved one leaves nothing."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Artifacts
from support.signalled import run_signalled

from pangu_convert import cli
from pangu_convert.artifact import read_artifact, verify

FRAMEWORKS = ("torch", "transformers", "ctranslate2", "gguf", "huggingface_hub", "tokenizers", "numpy")


def copy_with_config(source: Path, folder: Path, **changes: object) -> Path:
    """A copy of a checkpoint with other fields in its config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def refused(capsys: pytest.CaptureFixture[str], verb: str, checkpoint: Path, output: Path) -> str:
    """Run a conversion that must exit 2 with one line, which is returned, and leave nothing."""
    capsys.readouterr()
    assert cli.main([verb, str(checkpoint), "--output", str(output)]) == 2
    assert not output.exists()
    assert not output.with_name(f".{output.name}.partial").exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pangu-convert: error: ")
    return error


def test_a_ctranslate2_artifact_holds_all_the_server_needs(artifacts: Artifacts) -> None:
    artifact = read_artifact(artifacts("tiny_starcoder", "ctranslate2", "--quantization", "int8"))
    verify(artifact)
    manifest = artifact.manifest
    assert (manifest.format, manifest.quantization, manifest.dtype) == ("ctranslate2", "int8", "float32")
    assert manifest.name == "tiny-starcoder-int8"
    assert manifest.architecture == "GPTBigCodeForCausalLM"
    assert manifest.context_length == 256
    assert manifest.end_token_ids == (0,)
    assert manifest.weight_files == ("model.bin",)
    assert {"model.bin", "config.json", "vocabulary.json", "tokenizer.json"} <= set(manifest.files)
    assert manifest.library_versions["ctranslate2"]


def test_an_unquantized_artifact_links_its_weights(artifacts: Artifacts, tiny_starcoder: Path) -> None:
    folder = artifacts("tiny_starcoder", "transformers")
    manifest = read_artifact(folder).manifest
    assert (manifest.format, manifest.quantization, manifest.dtype) == ("transformers", "none", "float32")
    linked = folder / "model.safetensors"
    assert linked.stat().st_ino == (tiny_starcoder / "model.safetensors").stat().st_ino


def test_both_artifacts_name_the_same_source(artifacts: Artifacts) -> None:
    one = read_artifact(artifacts("tiny_starcoder", "ctranslate2", "--quantization", "int8")).manifest.source
    other = read_artifact(artifacts("tiny_starcoder", "transformers")).manifest.source
    assert one == other


@pytest.mark.parametrize("verb", ["ctranslate2", "transformers"])
def test_what_cannot_be_served_is_refused_by_name(
    verb: str, tmp_path: Path, tiny_starcoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy_with_config(tiny_starcoder, tmp_path / "other", architectures=["MptForCausalLM"])
    error = refused(capsys, verb, other, tmp_path / "out")
    assert "is a MptForCausalLM; supported are ApertusForCausalLM, CohereForCausalLM" in error
    multi_head = copy_with_config(tiny_starcoder, tmp_path / "multi-head", multi_query=False)
    assert "multi_query=false" in refused(capsys, verb, multi_head, tmp_path / "out")
    assert "not a folder" in refused(capsys, verb, tmp_path / "nowhere", tmp_path / "out")
    cut = copy_with_config(tiny_starcoder, tmp_path / "cut")
    os.truncate(cut / "model.safetensors", 100_000)
    assert "model.safetensors is damaged or cut short" in refused(capsys, verb, cut, tmp_path / "out")


def test_an_artifact_is_not_overwritten_unless_forced(
    tmp_path: Path, tiny_starcoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["transformers", str(tiny_starcoder), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main([*arguments, "--force", "--name", "renamed"]) == 0
    assert read_artifact(tmp_path / "out").manifest.name == "renamed"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, tiny_starcoder: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pangu_convert.cli",
            "ctranslate2",
            tiny_starcoder,
            "--output",
            tmp_path / "out",
            "--no-smooth",
        ],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("pangu-convert: error: no space left on the disk")
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_conversion_leaves_nothing_and_runs_again(tmp_path: Path, tiny_starcoder: Path) -> None:
    arguments = ["ctranslate2", str(tiny_starcoder), "--output", str(tmp_path / "out"), "--no-smooth"]
    # The library writes its config.json after the weights; nothing is sealed yet.
    killed = run_signalled(
        "pangu_convert.cli", arguments, signal.SIGKILL, opening=".out.partial/config.json", mode="w"
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".out.partial" / "model.bin").exists()
    assert not (tmp_path / "out").exists()
    assert cli.main(arguments) == 0
    verify(read_artifact(tmp_path / "out"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("module", ["pangu_convert.cli", "pangu_server.cli", "pangu_server.app"])
def test_no_framework_is_imported_before_it_is_needed(module: str) -> None:
    code = f"import {module}, sys; print(*sorted(set({FRAMEWORKS}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
