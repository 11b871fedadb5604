"""Reading a checkpoint folder: Hugging Face layout, safetensors only. Standard library only.

    config.json  *.safetensors  tokenizer.json  [tokenizer_config.json chat_template.jinja
    generation_config.json]  [import.json | training.json: where it came from]

Everyone who takes a checkpoint takes it through here: one rule for which files are the model (transformers' own), and
no code or pickle of a checkpoint is ever run. `architecture` holds the files against the model of the config.
Does not load weights and does not decide which architectures can be converted.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.files import MOST_TOKENIZER_BYTES, is_there, read_bytes, read_object, require_inside
from pangu_training.stage.tensors import COMPUTED, FLOATING, StoredTensor, read_tensors

CONFIG, TOKENIZER, GENERATION = "config.json", "tokenizer.json", "generation_config.json"
MOST_CONTEXT = 1 << 24  # tokens; more than any model has
WEIGHTS, SHARD_INDEX = "model.safetensors", "model.safetensors.index.json"
AUTOGPTQ_WEIGHTS = "gptq_model-*bit-*.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUANTIZE_CONFIG = "quantize_config.json"
QUANTIZE_CONFIGS = {QUANTIZE_CONFIG: "gptq", "quant_config.json": "awq"}  # of older quantizers
# Their names of what `config.json` calls otherwise, and what decides which numbers the weights are.
OLDER_KEYS = {"w_bit": "bits", "q_group_size": "group_size"}
DECIDING = frozenset(
    {
        *("quant_method", "bits", "group_size", "sym", "desc_act", "zero_point", "pack_dtype"),
        *("version", "format", "checkpoint_format", "is_marlin_format", "adapter", "rotation"),
    }
)
# What a tokenizer and a generation need besides the weights; copied along by every conversion.
TEXT_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    GENERATION,
)
IMPORTED, TRAINED = "import.json", "training.json"
PROVENANCE_FILES = (IMPORTED, TRAINED)
# What training.json says besides the base: nothing of the machine, as it is given to others.
TRAINING_FACTS = ("data", "held_out", "held_out_problems", "options", "library_versions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder whose files are all there."""

    path: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)

    @property
    def architecture(self) -> str:
        """The model class of `config.json`, e.g. `GPTBigCodeForCausalLM`."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else "unnamed"

    @property
    def dtype(self) -> str:
        """The weights' type, e.g. `bfloat16`: the one that most of them are stored in, whatever `config.json` says."""
        elements: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if tensor.dtype in FLOATING and not COMPUTED.search(tensor.name):
                elements[FLOATING[tensor.dtype]] += tensor.num_elements
        return elements.most_common(1)[0][0] if elements else self.config_dtype or "float32"

    @property
    def config_dtype(self) -> str | None:
        """The weights' type by `config.json`, where it names one."""
        # transformers 4 wrote `torch_dtype`
        named = str(self.config.get("dtype") or self.config.get("torch_dtype")).removeprefix("torch.")
        return named if named in FLOATING.values() else None

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """How the weights are quantized, by the quantizer's own words and `quant_method`; None if they are not.

        Raises:
            CheckpointError: two files that tell it differ.
        """
        return _quantization(self.path, self.config)

    @property
    def num_elements(self) -> int:
        """The numbers in all weight files."""
        return sum(tensor.num_elements for tensor in self.tensors.values())

    @property
    def context_length(self) -> int:
        """Positions the model was made for, in tokens."""
        length = self.config.get("n_positions") or self.config.get("max_position_embeddings")
        if type(length) is not int or not 0 < length <= MOST_CONTEXT:
            raise CheckpointError(f"{self.path / CONFIG} names no context length (max_position_embeddings)")
        return length

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding by `config.json`: token ids are below it."""
        size = self.config.get("vocab_size")
        if type(size) is not int or size < 1:
            raise CheckpointError(f"{self.path / CONFIG} names no vocabulary size (vocab_size)")
        return size

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
        """Tokens that end a generation: `generation_config.json`'s, else `config.json`'s.

        Raises:
            CheckpointError: there is none, or the model does not have it.
        """
        generation = self.path / GENERATION
        configs = {GENERATION: read_json(generation)} if generation.is_file() else {}
        for name, config in (*configs.items(), (CONFIG, self.config)):
            ids = config.get("eos_token_id")
            if ids is None:
                continue
            listed = ids if isinstance(ids, list) else [ids]
            if not listed or any(type(id) is not int or not 0 <= id < self.vocabulary_size for id in listed):
                raise CheckpointError(
                    f"eos_token_id in {self.path / name} is {json.dumps(ids)}: it has to be a token id, or a list of "
                    f"them, from 0 to {self.vocabulary_size - 1}"
                )
            return tuple(listed)
        raise CheckpointError(f"{self.path} names no end-of-text token: set eos_token_id in its config.json")

    @property
    def name(self) -> str:
        """What it is called: what it was imported or trained as, else its folder."""
        return str((self.provenance or {}).get("source") or self.path.resolve().name)

    @property
    def provenance(self) -> Mapping[str, Any] | None:
        """What the stage that made the checkpoint wrote about it."""
        for name in PROVENANCE_FILES:
            if (self.path / name).is_file():
                return read_json(self.path / name)
        return None


def read_checkpoint(path: Path, *, quantized: bool = False) -> Checkpoint:
    """Read the checkpoint folder at `path`: of the weights only names, types and shapes.

    Raises:
        CheckpointError: it is not a folder, a file is missing or damaged, its weights are pickles, or quantized if
            `quantized` does not allow it, or it asks for code of its own.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder: give the folder that holds config.json")
    require_readable(path)
    if (path / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{path} holds an adapter ({ADAPTER_CONFIG}) and not a model: pangu-convert import {path} merges it into "
            "its base"
        )
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} has no {CONFIG}: it is not a Hugging Face checkpoint")
    config = read_json(path / CONFIG)
    _require_plain(path, config)
    if not quantized:
        _require_unquantized(path, config)
    weights = _weight_files(path, quantized=quantized)
    if not (path / TOKENIZER).is_file():
        raise CheckpointError(
            f"{path} has no {TOKENIZER}: save it with transformers' AutoTokenizer(...).save_pretrained"
        )
    return Checkpoint(path=path, config=config, weight_files=weights, tensors=read_tensors(weights))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `CheckpointError` when it is none that every program reads alike."""
    try:
        return read_object(path)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): download or export it again") from None


def require_readable(path: Path) -> None:
    """Raise `CheckpointError` for a file next to the weights that is none, or that no program should read.

    Libraries read these files in ways of their own, and all are copied along.
    """
    for name in (CONFIG, SHARD_INDEX, ADAPTER_CONFIG, *QUANTIZE_CONFIGS, *TEXT_FILES, *PROVENANCE_FILES):
        file = path / name
        try:
            if not is_there(file):
                continue
            require_inside(file)
            if name == TOKENIZER:  # its own library parses it
                read_bytes(file, MOST_TOKENIZER_BYTES)
            elif name.endswith(".json"):
                read_object(file)
            else:
                read_bytes(file).decode()
        except ValueError as error:
            raise CheckpointError(f"{file} cannot be read ({error}): download or export it again") from None


def _require_plain(path: Path, config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where the config asks for more than transformers' own model."""
    if config.get("auto_map"):
        raise CheckpointError(
            f"{path / CONFIG} asks for code of its own (auto_map), which is never run: delete auto_map if the model is "
            "transformers' own"
        )
    if config.get("transformers_weights"):
        raise CheckpointError(
            f"{path / CONFIG} names its weight file (transformers_weights): call that {WEIGHTS} and delete the entry"
        )


def _require_unquantized(path: Path, config: Mapping[str, Any]) -> None:
    quantization = _quantization(path, config)
    if quantization is not None:
        method = quantization["quant_method"]
        adopted = "serve it with pangu-convert adopt, or " if method in QUANTIZE_CONFIGS.values() else ""
        raise CheckpointError(
            f"{path} is quantized already ({method}): {adopted}give the unquantized checkpoint it was made from"
        )


def _quantization(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """See `Checkpoint.quantization`."""
    found: dict[str, Any] = {}
    in_config = config.get("quantization_config") or config.get("compression_config")
    if in_config:
        found = _in_words_of_today(in_config if isinstance(in_config, dict) else {})
        found["quant_method"] = str(found.get("quant_method", "by an unnamed method"))
    for file, method in QUANTIZE_CONFIGS.items():
        if (path / file).is_file():
            told = _in_words_of_today({"quant_method": method, **read_json(path / file)})
            told["quant_method"] = str(told["quant_method"])
            both = DECIDING & found.keys() & told.keys()
            differing = [key for key in both if _folded(found[key]) != _folded(told[key])]
            if differing:
                raise CheckpointError(
                    f"{path / file} and {CONFIG} next to it differ in {min(differing)}: download the folder again"
                )
            found |= told
    return found or None


def _in_words_of_today(quantization: Mapping[str, Any]) -> dict[str, Any]:
    return {OLDER_KEYS.get(key, key): value for key, value in quantization.items()}


def _folded(value: object) -> object:
    return value.casefold() if isinstance(value, str) else value  # "GEMM" is "gemm"


def _weight_files(path: Path, *, quantized: bool) -> tuple[Path, ...]:
    """The files that are the model, in transformers' order: the whole one, else those that the index names.

    `quantized`: else the one file that AutoGPTQ wrote, as it names it.
    """
    if (path / WEIGHTS).is_file():
        return (path / WEIGHTS,)
    if (path / SHARD_INDEX).is_file():
        places = read_json(path / SHARD_INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CheckpointError(f"{path / SHARD_INDEX} names no files (weight_map): download it again")
        shards = sorted({str(name) for name in places.values()})
        for name in shards:
            if Path(name).name != name:
                raise CheckpointError(f"{path / SHARD_INDEX} points outside its folder: {name!r}")
            if not (path / name).is_file():
                raise CheckpointError(f"{path} lacks {name}, which {SHARD_INDEX} names: download it again")
        return tuple(path / name for name in shards)
    named = list(path.glob(AUTOGPTQ_WEIGHTS)) if quantized else []
    if len(named) == 1:
        return (named[0],)
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise CheckpointError(
            f"{path} holds pickled weights, which can run code when opened: load it where you trust it and "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"{path} has no {WEIGHTS}: it is not a checkpoint with weights")
