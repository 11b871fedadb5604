"""What `pangu-serve` is given: an artifact, or whatever one can be made of, in the cache.

Making one needs the extra `convert`. Its libraries are not imported for an artifact.
"""

import os
from pathlib import Path

from pangu_convert.artifact import CHECKPOINT_CONFIG, ArtifactError
from pangu_server.options import ServeOptions
from pangu_training.stage.errors import MissingExtra
from pangu_training.stage.identity import MANIFEST


def artifact_folder(options: ServeOptions) -> Path:
    """The artifact to serve, made now if need be.

    Raises:
        PanguError: nothing has this name, or nothing can be made of it.
        MissingExtra: something could, with the extra `convert`.
    """
    path = options.artifact
    if (
        os.path.lexists(path / MANIFEST) or (path / CHECKPOINT_CONFIG).is_file()
    ):  # what pangu-convert wrote, whole or not
        if options.revision or options.format != "auto":
            raise ArtifactError(f"{path} is an artifact already: leave --revision and --format out")
        return path
    try:
        from pangu_convert.cached import cached_artifact

        return cached_artifact(
            str(path),
            revision=options.revision,
            format=options.format,
            on_gpu=lambda: _on_gpu(options),
        )
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pangu_"):
            raise
        raise MissingExtra(f"{path} is not an artifact yet, and to make one: {error}", "convert") from error


def _on_gpu(options: ServeOptions) -> bool:
    """Whether the torch engine would run on a GPU, which is what unquantized artifacts need."""
    from pangu_server.backends.choice import find_gpu

    return options.engine != "ctranslate2" and options.device != "cpu" and find_gpu()[1]
