"""Reading a LoRA adapter's folder, as peft writes it. Standard library only; reads no numbers.

    adapter_config.json  adapter_model.safetensors  [tokenizer files]  [training.json: which base it was trained on]

Each setting is one that merging honours, one without effect on it, or a reason to refuse: an adapter of a kind that
peft knows and this program does not must not pass for a plain one. `adapter_changes` says what it does to weights.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_training.stage.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SHARD_INDEX,
    TRAINED,
    WEIGHTS,
    read_json,
    require_readable,
)
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.tensors import StoredTensor, read_tensors

PREFIX = "base_model.model."  # of all tensors: peft's wrappers around the model
KIND, TASK = "LORA", "CAUSAL_LM"
# How the first A and B were drawn, where that left the base's weights alone.
FIRST_WEIGHTS = (True, False, "gaussian", "orthogonal", "eva")
# For training, for peft itself, or for what other settings ask for. How a weight lies peft decides by its layer, not by
# fan_in_fan_out.
WITHOUT_EFFECT = (
    "auto_mapping",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
)
MERGE_ELSEWHERE = "merge it where it was trained (peft's merge_and_unload) and import the result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter whose settings all make sense together."""

    path: Path
    tensors: Mapping[str, StoredTensor]  # by their names without `PREFIX`
    base: str | None  # where its base was, by its config: a folder or a hub id
    base_revision: str | None
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    by_root: bool  # scaled by the root of the rank: rsLoRA
    with_bias: bool  # B has a bias
    targets: tuple[str, ...] | str  # ends of modules' names, or a pattern
    excluded: tuple[str, ...] | str
    layers: tuple[int, ...]  # empty: all
    layers_patterns: tuple[str, ...]
    saved: tuple[str, ...]  # ends of the names of modules that are stored whole
    tokens: Mapping[
        str, tuple[int, ...]
    ]  # of embeddings, by the end of their name ("": the input's): trained rows

    @property
    def trained_from(self) -> Mapping[str, Any] | None:
        """What `pangu-train fit` says of its base, if it made it: the `name` and `sha256`."""
        record = self.path / TRAINED
        base = read_json(record).get("base") if record.is_file() else None
        return base if isinstance(base, dict) and isinstance(base.get("sha256"), str) else None


def is_adapter(path: Path) -> bool:
    """Whether the folder is an adapter's."""
    return (path / ADAPTER_CONFIG).is_file()


def read_adapter(path: Path) -> Adapter:
    """Read the adapter folder at `path`: of its tensors only names, types and shapes.

    Raises:
        CheckpointError: it is not an adapter, is a pickle, or is of a kind that cannot be merged exactly.
    """
    if (path / WEIGHTS).is_file() or (path / SHARD_INDEX).is_file():
        raise CheckpointError(
            f"{path} holds a whole model and an adapter ({ADAPTER_CONFIG}): put each into a folder of its own"
        )
    require_readable(path)
    settings = _Settings(path / ADAPTER_CONFIG)
    settings.neutral("peft_type", KIND)
    settings.neutral("task_type", TASK, None)
    settings.neutral("bias", "none", None)
    settings.neutral("init_lora_weights", *FIRST_WEIGHTS, None)
    layers = settings.take("layers_to_transform", [], _is_int_or_ints, "layer numbers")
    targets = settings.take("target_modules", [], _is_text_or_texts, "names of modules")
    if layers != [] and isinstance(targets, str):
        raise CheckpointError(
            f"{settings.path}: layers_to_transform goes with a list of target_modules, not with a pattern"
        )
    adapter = Adapter(
        path=path,
        tensors=_tensors(path),
        base=settings.take("base_model_name_or_path", None, _is_text, "a text") or None,
        base_revision=settings.take("revision", None, _is_text, "a text") or None,
        rank=settings.take("r", None, _is_rank, "a whole number above 0", required=True),
        alpha=settings.take("lora_alpha", None, _is_number, "a number", required=True),
        rank_pattern=settings.take("rank_pattern", {}, _all_in_object(_is_rank), "ranks by names"),
        alpha_pattern=settings.take("alpha_pattern", {}, _all_in_object(_is_number), "numbers by names"),
        by_root=settings.take("use_rslora", False, _is_bool, "true or false"),
        with_bias=settings.take("lora_bias", False, _is_bool, "true or false"),
        targets=targets if isinstance(targets, str) else tuple(targets),
        excluded=_texts(settings.take("exclude_modules", [], _is_text_or_texts, "names of modules")),
        layers=(layers,) if isinstance(layers, int) else tuple(layers),
        layers_patterns=_listed(settings.take("layers_pattern", [], _is_text_or_texts, "names")),
        saved=_listed(settings.take("modules_to_save", [], _is_text_or_texts, "names of modules")),
        tokens=_tokens(settings.take("trainable_token_indices", {}, _is_tokens, "token ids")),
    )
    settings.require_empty()
    return adapter


def _tensors(path: Path) -> dict[str, StoredTensor]:
    file = path / ADAPTER_WEIGHTS
    if not file.is_file():
        raise CheckpointError(
            f"{path} has no {ADAPTER_WEIGHTS}: pickled adapters (adapter_model.bin) can run code when opened and are "
            "not taken; load it where you trust it and save_pretrained(..., safe_serialization=True)"
        )
    found = {}
    for name, tensor in read_tensors([file]).items():
        if not name.startswith(PREFIX):
            raise CheckpointError(
                f"{file} has a tensor {name}: all names begin with {PREFIX} in peft's files"
            )
        found[name.removeprefix(PREFIX)] = tensor
    return found


class _Settings:
    """The settings of an `adapter_config.json`, each to be taken once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._left = read_json(path)

    def take(
        self, name: str, default: Any, valid: Callable[[Any], bool], what: str, *, required: bool = False
    ) -> Any:
        """The setting `name`; `default` where there is none or it is null."""
        value = self._left.pop(name, None)
        if value is None and not required:
            return default
        if not valid(value):
            raise CheckpointError(
                f"{self.path}: {name} is {_shown(value)} and has to be {what}: export the adapter again"
            )
        return value

    def neutral(self, name: str, *values: Any) -> None:
        """Refuse a setting that is none of `values`."""
        value = self._left.pop(name, None)
        if not any(value is one or (type(value) is type(one) and value == one) for one in values):
            self._refuse(name, value)

    def require_empty(self) -> None:
        """Refuse a setting that nothing took and that asks for something."""
        for name, value in self._left.items():
            if name not in WITHOUT_EFFECT and value not in (None, False, [], {}, ""):
                self._refuse(name, value)

    def _refuse(self, name: str, value: Any) -> None:
        raise CheckpointError(
            f"{self.path} says {name}: {_shown(value)}, and only plain LoRA can be merged exactly here: "
            f"{MERGE_ELSEWHERE}"
        )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # NaN is not below anything


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(map(_is_text, value)))


def _is_int_or_ints(value: Any) -> bool:
    return all(type(one) is int for one in (value if isinstance(value, list) else [value]))


def _is_tokens(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(ids, list) and ids and _is_int_or_ints(ids) for ids in lists)


def _all_in_object(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(valid, value.values()))


def _texts(value: str | list[str]) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else tuple(value)


def _listed(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _tokens(value: Mapping[str, list[int]] | list[int]) -> dict[str, tuple[int, ...]]:
    by_module = value if isinstance(value, Mapping) else {"": value}
    return {module: tuple(ids) for module, ids in by_module.items()}
