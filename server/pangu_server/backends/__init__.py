"""Chooses an engine for an artifact, and imports it only then."""

import dataclasses
from collections.abc import Callable

from pangu_convert.artifact import Artifact
from pangu_server.backends.choice import choose_engine
from pangu_server.backends.seam import Backend, EngineName, LoadOptions
from pangu_training.stage.errors import MissingExtra


def load_backend(artifact: Artifact, options: LoadOptions) -> Backend:
    """Load `artifact` with the engine that `options` ask for; takes seconds to minutes.

    Raises:
        ArtifactError: that engine cannot run it, or the weights do not load.
        MissingExtra: the engine's libraries are not installed.
    """
    engine, why = choose_engine(artifact, options)
    try:
        return ENGINES[engine](artifact, options, why)
    except ImportError as error:
        raise MissingExtra(error, {"ctranslate2": "serve", "torch": "serve-torch"}[engine]) from error


def _load_ctranslate2(artifact: Artifact, options: LoadOptions, why: str) -> Backend:
    from pangu_server.backends.ctranslate2.backend import CTranslate2Backend

    backend = CTranslate2Backend(artifact, options)
    backend.info = dataclasses.replace(backend.info, why=why)
    return backend


def _load_torch(artifact: Artifact, options: LoadOptions, why: str) -> Backend:
    from pangu_server.backends.torch.backend import TorchBackend

    backend = TorchBackend(artifact, options)
    backend.info = dataclasses.replace(backend.info, why=why)
    return backend


ENGINES: dict[EngineName, Callable[[Artifact, LoadOptions, str], Backend]] = {
    "ctranslate2": _load_ctranslate2,
    "torch": _load_torch,
}
