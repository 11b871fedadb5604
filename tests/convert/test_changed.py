"""A checkpoint whose files changed since it was made is not converted as if it were that one still."""

import json
import shutil
from pathlib import Path

import pytest
from test_commands import fields_of

from pangu_convert import cli
from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.command import options_class
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import checkpoint_hash

VERBS = ["import"] + [
    name
    for name, (verb, _) in cli.VERBS.items()
    if {"checkpoint", "output"} <= {field.name for field in fields_of(options_class(verb))}
]
FILES = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture
def imported(tmp_path: Path, tiny_bytes: Path) -> Path:
    source = shutil.copytree(tiny_bytes, tmp_path / "source")
    assert cli.main(["import", str(source), "--output", str(tmp_path / "imported")]) == 0
    return tmp_path / "imported"


def overwrite(file: Path) -> None:
    """Other bytes of the same size, in place: weights are linked into the checkpoint."""
    data = bytearray(file.read_bytes())
    place = data.rindex(b"}") - 1 if file.suffix == ".json" else len(data) - 1  # JSON stays JSON
    data[place] = ord(" ") if data[place] == ord("\n") else data[place] ^ 1
    with file.open("r+b") as stream:
        stream.write(data)


def refused(verb: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> str:
    output = checkpoint.with_name("out")
    capsys.readouterr()
    assert cli.main([verb, str(checkpoint), "--output", str(output)]) == 2
    assert not output.exists()
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_overwritten_in_place_is_named(
    verb: str, name: str, imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overwrite(imported / name)
    error = refused(verb, imported, capsys)
    assert f"{imported / name} changed since import.json was written" in error
    record = json.loads((imported / "import.json").read_text())
    del record["files"]  # as the line advises
    (imported / "import.json").write_text(json.dumps(record))
    assert checkpoint_hash(read_checkpoint(imported))


def test_weights_that_came_later_are_named(imported: Path, tmp_path: Path) -> None:
    (imported / "model.safetensors").rename(imported / "other.safetensors")
    index = {"weight_map": {"x": "other.safetensors"}}
    (imported / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"other\.safetensors changed"):
        checkpoint_hash(read_checkpoint(imported))


@pytest.mark.parametrize("arguments", [[], ["--dtype", "bfloat16"]])
def test_the_record_names_every_file_of_the_checkpoint(
    arguments: list[str], imported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cli.main(["import", str(imported), "--output", str(out), *arguments]) == 0
    record = json.loads((out / "import.json").read_text())
    assert {*record["files"], "import.json"} == {file.name for file in out.iterdir()}
    checkpoint_hash(read_checkpoint(out))
    assert record["source"] == "source", "what it was imported from at first"
