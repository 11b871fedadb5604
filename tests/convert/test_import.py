"""Imports: what goes in comes out, and what cannot is refused with one line and no debris."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.gguf_files import gguf_content
from support.hub import commit_of, serve_hub, use_hub
from support.tiny import save_tiny

from pangu_convert import cli
from pangu_training.stage.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.scripted import byte_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "tiny-qwen2"
    return save_tiny(folder, byte_tokenizer(), "qwen2", eos_token_id=256)


def test_gguf_weights_come_out_in_bfloat16_by_default(tmp_path: Path, tiny_qwen2: Path) -> None:
    gguf = gguf_content(tiny_qwen2, "qwen2").write(tmp_path / "tiny.gguf")
    assert cli.main(["import", str(gguf), "--output", str(tmp_path / "out")]) == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_folder_is_linked_not_copied(tmp_path: Path, tiny_starcoder: Path) -> None:
    assert cli.main(["import", str(tiny_starcoder), "--output", str(tmp_path / "out")]) == 0
    imported, source = tmp_path / "out" / "model.safetensors", tiny_starcoder / "model.safetensors"
    assert imported.stat().st_ino == source.stat().st_ino
    assert read_checkpoint(tmp_path / "out").provenance is not None


def test_a_folder_is_cast_when_asked(tmp_path: Path, tiny_starcoder: Path) -> None:
    out = tmp_path / "out"
    assert cli.main(["import", str(tiny_starcoder), "--output", str(out), "--dtype", "bfloat16"]) == 0
    source, cast = load_file(tiny_starcoder / "model.safetensors"), load_file(out / "model.safetensors")
    assert source.keys() == cast.keys()
    for name, tensor in source.items():
        assert torch.equal(cast[name], tensor.to(torch.bfloat16))
    assert read_checkpoint(out).dtype == "bfloat16"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run an import that must exit 2 with one line, which is returned, and leave nothing."""
    *rest, output = arguments
    assert cli.main([*map(str, rest), "--output", str(output)]) == 2
    assert not Path(str(output)).exists()
    assert not list(Path(str(output)).parent.glob(".*"))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pangu-convert: error: ")
    return error


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "new" / "out"
    text = tmp_path / "in" / "notes.txt"
    text.write_text("hello")
    assert "not a GGUF file" in refused(capsys, "import", text, out)
    assert "neither a file, a folder" in refused(capsys, "import", "no such thing", out)


@pytest.mark.real_model
def test_the_real_model_says_that_it_was_quantized_before(smollm2: Path) -> None:
    origin = read_checkpoint(smollm2).provenance
    assert origin is not None
    assert origin["quantized_source"]["type"] == "Q4_1"
    assert origin["source"] == "smollm2-135m"
    assert origin["licence"] == "Apache-2.0"


@pytest.mark.parametrize("file", ["q8/tiny.gguf", "q8/tiny-00001-of-00001.gguf"])
def test_a_gguf_file_of_the_hub_is_imported_by_its_path(
    file: str, tmp_path: Path, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository" / "q8").mkdir(parents=True)
    gguf_content(tiny_qwen2, "qwen2").write(tmp_path / "repository" / file)
    (tmp_path / "repository" / "other.gguf").write_bytes(b"not asked for")
    with serve_hub(tmp_path / "repository") as address:
        use_hub(monkeypatch, address, tmp_path / "home")
        assert cli.main(["import", f"owner/repo/{file}", "--output", str(tmp_path / "out")]) == 0
    origin = read_checkpoint(tmp_path / "out").provenance
    assert origin is not None
    assert (origin["source"], origin["path"]) == ("owner/repo", file)
    assert origin["commit"] == commit_of(tmp_path / "repository")
    assert origin["quantized_source"]["type"] == "F32"
    assert not list((tmp_path / "home").rglob("other.gguf"))
