"""Checkpoints with something wrong in them: a copy of a good one, a tensor or a setting changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"


def copied(source: Path, folder: Path, **settings: object) -> Path:
    """A copy of a checkpoint with `settings` in its config.json; None removes one."""
    shutil.copytree(source, folder)
    if settings:
        config = {**json.loads((folder / "config.json").read_text()), **settings}
        kept = {name: value for name, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
    return folder


def rewritten(folder: Path, change: Callable[[Tensors], object]) -> Path:
    """`folder` with its tensors changed."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def sharded(folder: Path, *shards: Tensors) -> None:
    """Put `shards` in the place of the one weight file, with an index."""
    (folder / WEIGHTS).unlink(missing_ok=True)
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def removed(tensors: Tensors, name: str) -> None:
    del tensors[name]


def renamed(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_old"] = tensors.pop(name)


def added(tensors: Tensors, name: str) -> None:
    tensors[f"extra.{name}"] = tensors[name].clone()


def reshaped(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def flattened(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][None]


def integers(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].to(torch.int8)


def not_a_number(tensors: Tensors, name: str) -> None:
    tensors[name].view(-1)[-1] = float("nan")


def infinite(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].to(torch.bfloat16)
    tensors[name].view(-1)[0] = float("-inf")


DAMAGES = [removed, renamed, added, reshaped, flattened, integers, not_a_number, infinite]
