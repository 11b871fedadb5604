"""What is not a checkpoint is refused with the reason and the way out."""

import json
from pathlib import Path

import pytest

from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.errors import CheckpointError

HEADER = '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
WEIGHTS = chr(len(HEADER)) + "\0" * 7 + HEADER + "\0" * 4  # a safetensors file of one number
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 64,
    "vocab_size": 10,
    "eos_token_id": 7,
}


def make(folder: Path, **files: str | None) -> Path:
    """A checkpoint folder; a file given as None is left out."""
    content = {
        "config.json": json.dumps(CONFIG),
        "model.safetensors": WEIGHTS,
        "tokenizer.json": "{}",
        **{name.replace("__", "."): text for name, text in files.items()},
    }
    for name, text in content.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


def test_a_whole_checkpoint_is_read(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make(tmp_path, generation_config__json='{"eos_token_id": [7, 9]}'))
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.context_length == 64
    assert checkpoint.end_token_ids == (7, 9)
    assert checkpoint.weight_bytes == len(WEIGHTS)
    assert checkpoint.dtype == "float32"


def test_end_tokens_come_from_config_without_a_generation_config(tmp_path: Path) -> None:
    assert read_checkpoint(make(tmp_path)).end_token_ids == (7,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config__json": None}, "no config.json"),
        ({"config__json": "{"}, "cannot be read"),
        ({"config__json": "[]"}, "JSON object"),
        ({"tokenizer__json": None}, "no tokenizer.json"),
        ({"model__safetensors": None}, "no model.safetensors"),
        ({"model__safetensors": None, "pytorch_model__bin": "pickle"}, "pickled weights.*safe_serialization"),
        (
            {
                "model__safetensors": None,
                "model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}',
            },
            "lacks model-1.safetensors",
        ),
        (
            {
                "model__safetensors": None,
                "model.safetensors.index.json": '{"weight_map": {"a": "../secret"}}',
            },
            "outside its folder",
        ),
    ],
)
def test_a_broken_checkpoint_is_refused(tmp_path: Path, files: dict[str, str | None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(make(tmp_path, **files))


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        read_checkpoint(tmp_path / "nowhere")
