"""An artifact that is not what its manifest says is refused, by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.scripted import scripted_artifact

from pangu_convert import cli
from pangu_convert.artifact import ArtifactError, Manifest, read_artifact, verify, write_scores
from pangu_training.stage.identity import combined_hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scripted_artifact(tmp_path)
    return tmp_path


def change_manifest(folder: Path, **fields: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **fields}))


def test_a_manifest_survives_its_json(folder: Path) -> None:
    manifest = read_artifact(folder).manifest
    assert isinstance(manifest, Manifest)
    assert json.loads(manifest.to_json()) == json.loads((folder / "manifest.json").read_text())
    assert manifest.weight_bytes == len(b"no weights")
    verify(read_artifact(folder))


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_json_has_not_is_never_written(figure: float, folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        write_scores(read_artifact(folder), {"fidelity": {"kl_mean": [figure]}})
    assert (folder / "manifest.json").read_bytes() == before


def test_every_flipped_byte_is_found(folder: Path) -> None:
    for name in ("model.bin", "tokenizer.json"):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(ArtifactError, match=name):
            verify(read_artifact(folder))
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    verify(read_artifact(folder))


def test_a_file_cut_short_is_found_without_hashing(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="has 2 bytes, not the 10"):
        read_artifact(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"model\.bin is missing"):
        read_artifact(folder)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an artifact"):
        read_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not a folder"):
        read_artifact(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"format": "onnx"}, "format is 'onnx' and should be"),
        ({"surprise": 1}, "damaged"),
        ({"files": None}, "damaged"),
    ],
)
def test_a_manifest_from_elsewhere_is_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    change_manifest(folder, **fields)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(folder)


def test_a_manifest_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        read_artifact(folder)


def test_inspect_prints_the_manifest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "scripted"


def test_inspect_verify_exits_2_with_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--verify", str(folder)]) == 0
    (folder / "model.bin").write_bytes(b"NO weights")
    capsys.readouterr()
    assert cli.main(["inspect", "--verify", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pangu-convert: error: model.bin")
    assert captured.err.count("\n") == 1


def test_a_checkpoints_hash_depends_on_names_and_contents_not_on_order() -> None:
    one = combined_hash({"a": "1", "b": "2"})
    assert one == combined_hash({"b": "2", "a": "1"})
    assert one != combined_hash({"a": "2", "b": "1"})
