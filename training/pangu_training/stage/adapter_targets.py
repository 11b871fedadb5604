"""Which modules of a model an adapter changes, by peft's rules. Names are patterns, of whoever made it."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from transformers.pytorch_utils import Conv1D

from pangu_training.stage.adapter import Adapter
from pangu_training.stage.bounded import bounded
from pangu_training.stage.checkpoint import ADAPTER_CONFIG
from pangu_training.stage.errors import CheckpointError

ALL_LINEAR = "all-linear"
PLAIN = re.compile(r"\^?[\w.-]*")  # nothing in it repeats: it can be matched at once
MATCH_SECONDS = 2
Value = TypeVar("Value")


def targets(adapter: Adapter, model: Any) -> list[str]:
    """The names of the modules that have a pair of matrices, in the model's order.

    Raises:
        CheckpointError: a pattern cannot be matched, or a name finds no module.
    """
    modules = [name for name, _ in model.named_modules() if name]
    out = set(_named(adapter, adapter.excluded, modules)) if adapter.excluded else set()
    for saved in adapter.saved:
        out |= {name for name in modules if re.search(rf"(^|\.){re.escape(saved)}($|\.)", name)}
    if isinstance(adapter.targets, str) and adapter.targets.lower() == ALL_LINEAR:
        head = model.get_output_embeddings()
        linear = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
        ]
        return [name for name in linear if name not in out]
    found = {name for name in _named(adapter, adapter.targets, modules) if name not in out}
    exact = set(() if isinstance(adapter.targets, str) else adapter.targets)
    chosen = [
        name for name in modules if name in found and (name in exact or _layer_is_chosen(adapter, name))
    ]
    for target in exact:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise CheckpointError(
                f"{adapter.path / ADAPTER_CONFIG} names the module {target} in target_modules, which its base has not: "
                "give the adapter's own base, or delete the name there"
            )
    return chosen


def by_pattern(
    adapter: Adapter, patterns: Mapping[str, Value], default: Value, modules: list[str]
) -> dict[str, Value]:
    """A value for each of `modules`: that of the first of `patterns` which ends its name, else `default`."""
    values = dict.fromkeys(modules, default)
    found = _matching(adapter, list(patterns), modules, start=r"(?:.*\.)?")
    for names, value in reversed(list(zip(found, patterns.values(), strict=True))):
        values |= dict.fromkeys(names, value)
    return values


def _matching(adapter: Adapter, patterns: list[str], names: list[str], *, start: str = "") -> list[list[str]]:
    """For each pattern those of `names` which it matches, as a whole but for a `start`."""
    if all(map(PLAIN.fullmatch, patterns)):
        return [[name for name in names if re.fullmatch(start + pattern, name)] for pattern in patterns]
    try:
        found: list[list[str]] = bounded(
            __name__, "matches", start, patterns, names, most_seconds=MATCH_SECONDS
        )
    except ValueError as error:
        raise CheckpointError(
            f"{adapter.path / ADAPTER_CONFIG}: its patterns of modules' names cannot be matched, such as "
            f"{patterns[0][:60]!r} ({error}): name the modules in a list"
        ) from None
    return found


def matches(start: str, patterns: list[str], names: list[str]) -> list[list[str]]:
    """As `_matching`. A pattern can take longer than the universe has, or all memory: another process tries it."""
    return [[name for name in names if re.fullmatch(f"{start}({pattern})", name)] for pattern in patterns]


def _named(adapter: Adapter, wanted: tuple[str, ...] | str, modules: list[str]) -> list[str]:
    if isinstance(wanted, str):
        return _matching(adapter, [wanted], modules)[0]
    ends = tuple(f".{name}" for name in wanted)
    return [name for name in modules if name in wanted or name.endswith(ends)]


def _layer_is_chosen(adapter: Adapter, module: str) -> bool:
    if not adapter.layers:
        return True
    patterns = [rf"(?:^|.*?\.){re.escape(name)}" for name in adapter.layers_patterns] or [r".*?\.[^.]*"]
    found = (re.match(rf"{pattern}\.(\d+)\.", module) for pattern in patterns)
    number = next((match[1] for match in found if match), None)
    return number is not None and int(number) in adapter.layers
