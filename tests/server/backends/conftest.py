"""Tiny models of every architecture, converted once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import pangu_convert
from support.models import save_model
from support.once import once


@pytest.fixture(scope="session")
def converted(shared: Path) -> Callable[..., Path]:
    """`converted("llama", "ctranslate2", ...)` -> its artifact; without a verb, the checkpoint."""

    def make(model: str, *arguments: str) -> Path:
        folder = shared / "models" / model
        checkpoint = once(folder / "checkpoint", lambda: save_model(folder / "checkpoint", model))
        if not arguments:
            return checkpoint
        verb, *options = arguments
        artifact = folder / "-".join(word.strip("-") for word in arguments)
        return once(artifact, lambda: pangu_convert(verb, checkpoint, "--output", artifact, *options))

    return make
