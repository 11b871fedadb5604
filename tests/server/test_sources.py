"""`pangu-serve` with anything that names a model: made once in the cache, found again, and nothing half."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import save_adapter
from support.commands import pangu_convert
from support.damage import copied
from support.gguf_files import gguf_content
from support.hub import commit_of, serve_hub, use_hub
from support.models import save_model
from support.packers import AWQ, save_packed
from support.process import COMMAND

from pangu_convert import cached
from pangu_convert.artifact import read_artifact, verify
from pangu_server import cli, sources
from pangu_server.options import ServeOptions


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PANGU_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama") / "checkpoint", "llama")


def found(capsys: pytest.CaptureFixture[str], source: object, **options: object) -> tuple[Path, str]:
    """The artifact of `source`, and what was said."""
    capsys.readouterr()
    artifact = sources.artifact_folder(ServeOptions(artifact=Path(str(source)), device="cpu", **options))  # type: ignore[arg-type]
    assert read_artifact(artifact).path == artifact
    return artifact, capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pangu-serve: error: ")
    return error


def test_a_checkpoint_is_converted_once_and_again_when_it_changed(
    llama: Path, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = copied(llama, tmp_path / "model")
    first, said = found(capsys, folder)
    assert read_artifact(first).manifest.quantization == "int8"
    assert first.is_relative_to(home / "artifacts")
    assert f"{folder}: converting it to ctranslate2 as {first}" in said
    again, said = found(capsys, folder)
    assert (again, said) == (first, f"{folder}: found in the cache, {first}\n")
    plain, said = found(capsys, folder, format="transformers")
    assert read_artifact(plain).manifest.quantization == "none"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    changed, said = found(capsys, folder, format="transformers")
    assert changed != plain
    assert "converting it to transformers" in said


def test_without_int8_or_on_a_gpu_it_is_unquantized(
    llama: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cached.cached_artifact(str(llama), revision=None, format="auto", on_gpu=lambda: True)
    assert read_artifact(folder).manifest.format == "transformers"


def test_a_quantized_folder_is_adopted(
    llama: Path, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = save_packed(llama, tmp_path / "model", AWQ)
    artifact, said = found(capsys, folder)
    assert read_artifact(artifact).manifest.quantization == "awq-int4-g64"
    assert said.startswith(f"{folder}: adopting it as {artifact}\n")
    assert found(capsys, folder) == (artifact, f"{folder}: found in the cache, {artifact}\n")
    assert "is quantized already, and served as it is: leave --format out" in refused(
        capsys, folder, "--format", "gptq"
    )


def test_a_gguf_file_is_imported_and_converted(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = save_model(tmp_path / "source", "qwen2")
    file = gguf_content(source, "qwen2").write(tmp_path / "tiny.gguf")
    artifact, said = found(capsys, file, format="transformers")
    [checkpoint] = (home / "checkpoints").iterdir()
    assert said.startswith(f"{file}: importing it as {checkpoint}\n")
    shutil.rmtree(artifact)
    again, said = found(capsys, file, format="transformers")
    assert again == artifact
    assert said.startswith(f"{file}: converting it to transformers")


def test_a_hub_id_is_taken_by_its_commit(
    llama: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = save_packed(llama, tmp_path / "packed", AWQ)
    with serve_hub(llama, {"awq": packed}) as address:
        use_hub(monkeypatch, address, home)
        plain, _ = found(capsys, "owner/repo", format="transformers")
        adopted, _ = found(capsys, "owner/repo", revision="awq")
        assert "at v9 could not be fetched" in refused(capsys, "owner/repo", "--revision", "v9")
    for artifact, source in ((plain, llama), (adopted, packed)):
        provenance = read_artifact(artifact).manifest.source.provenance
        assert provenance is not None
        assert provenance["commit"] == commit_of(source)
        assert commit_of(source)[:12] in artifact.name
    # The whole commit needs no hub, nor what was fetched from it.
    shutil.rmtree(home / "hub")
    assert found(capsys, "owner/repo", revision=commit_of(packed))[0] == adopted


def test_an_artifact_on_the_hub_is_served_as_it_is(
    llama: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pangu_convert("ctranslate2", llama, "--no-smooth", "--output", tmp_path / "int8")
    with serve_hub(tmp_path / "int8") as address:
        use_hub(monkeypatch, address, home)
        artifact, _ = found(capsys, "owner/repo")
    assert read_artifact(artifact).manifest == read_artifact(tmp_path / "int8").manifest
    verify(read_artifact(artifact))


def test_what_int8_does_not_carry_over_is_unquantized(
    llama: Path, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = copied(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    artifact, said = found(capsys, folder)
    assert read_artifact(artifact).manifest.quantization == "none"
    assert f"{folder}: not int8, since" in said
    assert f"{folder}: found in the cache, {artifact}" in found(capsys, folder)[1]
    assert "does not carry over" in refused(capsys, folder, "--format", "ctranslate2")


def test_an_adapter_is_merged_first(
    llama: Path, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter", target_modules=["q_proj"])
    artifact, said = found(capsys, adapter, format="transformers")
    assert f"{adapter}: importing it as " in said
    tensors, base = load_file(artifact / "model.safetensors"), load_file(llama / "model.safetensors")
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, tensors[name])}
    assert changed
    assert all(name.endswith("q_proj.weight") for name in changed)


def test_what_is_none_is_one_line(
    llama: Path, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no model")
    for arguments, message in (
        (
            ["nothing"],
            "'nothing' is neither an artifact, a folder, a file, a hub id (OWNER/NAME) nor one of qwen2.5",
        ),
        ([tmp_path / "nothing"], "is neither an artifact"),
        ([tmp_path / "empty"], "has no config.json"),
        ([tmp_path / "file"], "is not a GGUF file"),
        ([llama, "--revision", "v1"], "--revision is of a hub id"),
        (["smollm2-135m", "--revision", "v1"], "--revision is of a hub id"),
    ):
        assert message in refused(capsys, *arguments)
    pangu_convert("transformers", llama, "--output", tmp_path / "artifact")
    for option in (["--format", "gptq"], ["--revision", "v1"]):
        assert "is an artifact already" in refused(capsys, tmp_path / "artifact", *option)
    assert not [entry for entry in home.rglob("*") if entry.is_file()]


def test_without_the_libraries_the_extra_is_named(
    llama: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cached, "convert", missing)
    assert (
        "is not an artifact yet, and to make one: No module named 'torch': install the extra convert"
        in refused(capsys, llama, "--device", "cpu")
    )


def test_ctrl_c_leaves_nothing_and_the_next_start_serves(home: Path, llama: Path) -> None:
    command: list[str | Path] = [COMMAND, llama, "--port", "0", "--device", "cpu", "--threads", "1"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert "converting it" in first.stdout.readline()
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert "stopped; run the same command again to go on" in first.communicate()[1]
    assert not [entry for entry in home.rglob("*") if entry.is_file()]

    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert second.stdout is not None
    lines = [second.stdout.readline() for _ in range(2)]
    assert re.search("converting it to ctranslate2 as .*-ctranslate2$", lines[0])
    assert re.search(r"-int8 ready on http://127\.0\.0\.1:\d+: ", lines[1])
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    second.communicate()
