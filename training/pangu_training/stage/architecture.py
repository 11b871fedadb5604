"""A checkpoint against the model that its config describes: every parameter stored once, and nothing else.

transformers builds the model on torch's `meta` device: names and shapes, no numbers. What it would draw at random, or
leave out without a word, is refused here by name. The model classes are transformers' own; no other code is run.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open

from pangu_training.stage.checkpoint import CONFIG, Checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.renaming import Parts, parts_by_name, single
from pangu_training.stage.tensors import COMPUTED, FLOATING, StoredTensor

FAULTS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    StrictDataclassError,
)
# What a config makes lists and modules of: more would take long to build, and no model has them.
COUNTS = {"num_hidden_layers": 1000, "n_layer": 1000, "num_labels": 1000}
COMPARED_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Located:
    """A model without numbers, and where each of them lies."""

    model: Any  # transformers' model, on the meta device
    # By the model's names, tied ones included; without experts that are stored one by one.
    tensors: Mapping[str, StoredTensor]


def located(checkpoint: Checkpoint) -> Located:
    """The model of a checkpoint. Reads no weights, but for two that should be one.

    Raises:
        CheckpointError: the config describes no model, or a tensor is missing, of a wrong shape or type, or none of the
            model's, or two that the config ties differ.
    """
    try:
        model = build(model_config(checkpoint), checkpoint.architecture)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path / CONFIG}: {error}") from None
    places = assign(model, checkpoint.tensors)
    if places.missing:
        raise CheckpointError(
            f"{checkpoint.path} has no tensor {_some(places.missing)}: its files and config.json differ; "
            f"{_missing_help(model, places.missing)}"
        )
    if places.unknown:
        raise CheckpointError(
            f"{checkpoint.path} has a tensor {_some(places.unknown)}, which {checkpoint.architecture} has not: its "
            "files and config.json differ; download or export it again"
        )
    tensors = {}
    for name, parameter in model.state_dict().items():
        parts, shape = places.stored[name], tuple(parameter.shape)
        if stored := single(parts):
            tensors[name] = checkpoint.tensors[stored]
        else:
            shape = (shape[1] // len(parts[0]), *shape[2:])
        for stored in (stored for matrices in parts for stored in matrices):
            _require_fitting(checkpoint.tensors[stored], shape)
    _require_equal(checkpoint, model, places)
    return Located(model=model, tensors=tensors)


def model_config(checkpoint: Checkpoint) -> Any:
    """transformers' config of a checkpoint, its type that of the stored weights; raises as `config_of`."""
    return config_of(checkpoint.config, checkpoint.dtype)


def config_of(described: Mapping[str, Any], dtype: str) -> Any:
    """transformers' config of what a `config.json` describes, for weights of `dtype`.

    Raises:
        CheckpointError: it describes no model that transformers knows.
    """
    fields = {key: value for key, value in described.items() if key not in ("dtype", "torch_dtype")}
    kind = fields.pop("model_type", None)
    for key, most in COUNTS.items():
        if isinstance(count := fields.get(key), int) and count > most:
            raise CheckpointError(f"{key} is {count}, more than any model has: download it again")
    try:
        config = transformers.AutoConfig.for_model(kind, **fields)
    except FAULTS as error:
        raise CheckpointError(f"it describes no model ({_line(error)}): download it again") from None
    config.dtype = getattr(torch, dtype)
    return config


def build(config: Any, architecture: str) -> Any:
    """The transformers model class `architecture` for `config` on the `meta` device: names and shapes, no numbers.

    Raises:
        CheckpointError: there is no such model.
    """
    model_class = getattr(transformers, architecture, None)
    if not isinstance(config, getattr(model_class, "config_class", None) or ()):
        raise CheckpointError(f"names {architecture} but describes a {config.model_type}")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a size of 0 is refused by its shape
            return model_class(config).eval()  # type: ignore[misc]  # it has a config_class
    except FAULTS as error:
        raise CheckpointError(f"does not describe a {architecture} ({_line(error)})") from None


def compute(model: Any, names: Iterable[str], device: str | torch.device) -> None:
    """Put the buffers `names` of `model`, which are computed and not stored, on `device`; no parameter changes."""
    owners = {}
    for name in names:
        path, _, attribute = name.rpartition(".")
        module = owners[path] = model.get_submodule(path)
        setattr(module, attribute, torch.empty_like(getattr(module, attribute), device=device))
    for module in owners.values():
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = True  # transformers then leaves it as it is
        model._init_weights(module)  # as from_pretrained does: rotary frequencies, GPTBigCode's mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Which stored tensors each name of a model's state is, and what does not fit."""

    stored: Mapping[str, Parts]
    missing: list[str]
    unknown: list[str]


def assign(model: Any, names: Iterable[str]) -> Places:
    """Match the stored `names` with those of `model`. Of two that are tied a checkpoint may hold either, or both."""
    names, state = set(names), model.state_dict()
    lengths = {name: len(tensor) if tensor.dim() else 0 for name, tensor in state.items()}
    parts = parts_by_name(model.config.model_type, lengths, names)
    tied = dict(model.all_tied_weights_keys)
    others: dict[str, set[str]] = {}
    for target, source in tied.items():
        others.setdefault(source, {source}).add(target)
    stored, missing = {}, []
    for name in state:
        same = others.get(tied.get(name, name), {name})
        found = name if name in parts else min(same & parts.keys(), default=None)
        if found is not None:
            stored[name] = parts[found]
            missing += [part for matrices in parts[found] for part in matrices if part not in names]
        elif tied.get(name, name) not in missing:
            missing.append(tied.get(name, name))
    foreign = [parts[name][0][0] for name in parts.keys() - state.keys()]
    unknown = sorted(name for name in foreign if not ignored(model, name))
    return Places(stored=stored, missing=missing, unknown=unknown)


def ignored(model: Any, name: str) -> bool:
    """Whether a checkpoint may hold the tensor `name` without `model` having it: a buffer of older versions."""
    patterns = (*(model._keys_to_ignore_on_load_unexpected or ()), COMPUTED)
    return any(re.search(pattern, name) for pattern in patterns)


def _require_fitting(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype not in FLOATING:
        raise CheckpointError(
            f"{tensor.name} in {tensor.file} is of type {tensor.dtype}: only unquantized checkpoints "
            f"({', '.join(FLOATING)}) are taken"
        )
    if tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.name} in {tensor.file} has shape {list(tensor.shape)} where config.json asks for {list(shape)}"
        )


def _require_equal(checkpoint: Checkpoint, model: Any, places: Places) -> None:
    """What the config ties may be stored twice, but then has to be the same: programs differ in what they take."""
    for target, source in model.all_tied_weights_keys.items():
        pair = {single(places.stored[name]) for name in (target, source)}
        if len(pair) == 2 and not same_numbers(*(checkpoint.tensors[name] for name in pair if name)):
            raise CheckpointError(
                f"{target} and {source} in {checkpoint.path} differ, and its config.json says that they are one: set "
                "tie_word_embeddings to false there"
            )


def same_numbers(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are the same, compared a few rows at a time."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    with safe_open(one.file, framework="pt") as first, safe_open(other.file, framework="pt") as second:
        views = first.get_slice(one.name), second.get_slice(other.name)
        return all(
            torch.equal(*(view[start : start + COMPARED_ROWS] for view in views))
            for start in range(0, one.shape[0], COMPARED_ROWS)
        )


def _missing_help(model: Any, missing: list[str]) -> str:
    head = model.get_output_embeddings()
    heads = {
        name for name, parameter in model.named_parameters() if head is not None and parameter is head.weight
    }
    if set(missing) <= heads:
        return "set tie_word_embeddings to true there if the embedding is the output layer, else download it again"
    return "download or export it again"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
