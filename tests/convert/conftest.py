"""Checkpoints of every architecture and LoRA adapters of them, made once a module."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from support.adapters import EXACT, save_adapter
from support.models import save_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of `MODELS` by its name."""
    return functools.cache(lambda model: save_model(tmp_path_factory.mktemp("models") / model, model))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, made: Callable[[str], Path]) -> Callable[[str], Path]:
    """An adapter of `EXACT` by its name."""
    folder = tmp_path_factory.mktemp("adapters")
    return functools.cache(lambda name: save_adapter(made(EXACT[name][0]), folder / name, **EXACT[name][1]))
