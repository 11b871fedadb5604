"""Reading a checkpoint folder: Hugging Face layout, safetensors only. Standard library only.

    config.json  *.safetensors  tokenizer.json  [tokenizer_config.json chat_template.jinja
    generation_config.json]  [import.json | training.json: where it came from]

Does not load weights and does not decide which architectures can be converted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_training.stage.errors import CheckpointError

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
SHARD_INDEX = "model.safetensors.index.json"
# What a tokenizer and a generation need besides the weights; copied along by every conversion.
TEXT_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
IMPORTED, TRAINED = "import.json", "training.json"
PROVENANCE_FILES = (IMPORTED, TRAINED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder whose files are all there."""

    path: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        """The model class of `config.json`, e.g. `GPTBigCodeForCausalLM`."""
        return str((self.config.get("architectures") or ["unnamed"])[0])

    @property
    def dtype(self) -> str:
        """The weights' type by `config.json`, e.g. `bfloat16`."""
        # transformers 4 wrote `torch_dtype`
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    @property
    def context_length(self) -> int:
        """Positions the model was made for, in tokens."""
        length = self.config.get("n_positions") or self.config.get("max_position_embeddings")
        if not isinstance(length, int):
            raise CheckpointError(f"{self.path / CONFIG} names no context length (max_position_embeddings)")
        return length

    @property
    def weight_bytes(self) -> int:
        """Size of the weight files on disk."""
        return sum(file.stat().st_size for file in self.weight_files)

    @property
    def text_files(self) -> tuple[Path, ...]:
        """The tokenizer's and generation's files that exist."""
        return tuple(self.path / name for name in TEXT_FILES if (self.path / name).is_file())

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation: `generation_config.json`'s, else `config.json`'s."""
        generation = self.path / "generation_config.json"
        configs = [read_json(generation)] if generation.is_file() else []
        for config in (*configs, self.config):
            ids = config.get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (ids,)
        raise CheckpointError(f"{self.path} names no end-of-text token: set eos_token_id in its config.json")

    @property
    def provenance(self) -> Mapping[str, Any] | None:
        """What the stage that made the checkpoint wrote about it."""
        for name in PROVENANCE_FILES:
            if (self.path / name).is_file():
                return read_json(self.path / name)
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint folder at `path`.

    Raises:
        CheckpointError: it is not a folder, a file is missing, or its weights are pickles.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder: give the folder that holds config.json")
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} has no {CONFIG}: it is not a Hugging Face checkpoint")
    config = read_json(path / CONFIG)
    weights = _weight_files(path)
    if not (path / TOKENIZER).is_file():
        raise CheckpointError(
            f"{path} has no {TOKENIZER}: save it with transformers' AutoTokenizer(...).save_pretrained"
        )
    return Checkpoint(path=path, config=config, weight_files=weights)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `CheckpointError` when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download or export it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: download or export it again")
    return value


def _weight_files(path: Path) -> tuple[Path, ...]:
    if (path / SHARD_INDEX).is_file():
        shards = sorted({str(name) for name in read_json(path / SHARD_INDEX).get("weight_map", {}).values()})
        for name in shards:
            if Path(name).name != name:
                raise CheckpointError(f"{path / SHARD_INDEX} points outside its folder: {name!r}")
            if not (path / name).is_file():
                raise CheckpointError(f"{path} lacks {name}, which {SHARD_INDEX} names: download it again")
        return tuple(path / name for name in shards)
    if (path / "model.safetensors").is_file():
        return (path / "model.safetensors",)
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise CheckpointError(
            f"{path} holds pickled weights, which can run code when opened: load it where you trust it and "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"{path} has no model.safetensors: it is not a checkpoint with weights")
