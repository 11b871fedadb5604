"""What `pangu-serve` is given: an artifact, or whatever one can be made of, in the cache.

Making one needs the extra `convert`. Its libraries are not imported for an artifact.
"""

from pathlib import Path

from pangu_convert.artifact import ArtifactError
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
    if (path / MANIFEST).is_file():
        if options.revision or options.format != "auto":
            raise ArtifactError(f"{path} is an artifact already: leave --revision and --format out")
        return path
    try:
        from pangu_convert.cached import cached_artifact

        return cached_artifact(
            str(path),
            revision=options.revision,
            format=options.format,
            on_gpu=lambda: _on_gpu(options.device),
        )
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pangu_"):
            raise
        raise MissingExtra(f"{path} is not an artifact yet, and to make one: {error}", "convert") from error


def _on_gpu(device: str) -> bool:
    from pangu_server.backends.choice import find_gpu

    return device == "cuda" or (device == "auto" and any(find_gpu()))
