"""Chooses a backend by the artifact's format, and imports it only then."""

from collections.abc import Callable

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.seam import Backend, LoadOptions
from pangu_training.stage.errors import MissingExtra


def load_backend(artifact: Artifact, options: LoadOptions) -> Backend:
    """Load `artifact`; takes seconds to minutes.

    Raises:
        ArtifactError: no backend for the format, or the weights do not load.
        MissingExtra: its libraries are not installed.
    """
    format = artifact.manifest.format
    if format not in BACKENDS:
        raise ArtifactError(
            f"{artifact.path} has format {format}, which this server cannot run; it runs {', '.join(BACKENDS)}"
        )
    try:
        return BACKENDS[format](artifact, options)
    except ImportError as error:
        extra = {"ctranslate2": "serve", "gptq": "serve,gptq"}.get(format, "serve-torch")
        raise MissingExtra(error, extra) from error


def _load_ctranslate2(artifact: Artifact, options: LoadOptions) -> Backend:
    from pangu_server.backends.ctranslate2.backend import CTranslate2Backend

    return CTranslate2Backend(artifact, options)


def _load_transformers(artifact: Artifact, options: LoadOptions) -> Backend:
    from pangu_server.backends.torch.backend import TorchBackend

    return TorchBackend(artifact, options)


def _load_gptq(artifact: Artifact, options: LoadOptions) -> Backend:
    from pangu_server.backends.torch.backend import TorchBackend
    from pangu_server.backends.torch.gptq import load_gptq

    return TorchBackend(artifact, options, name="gptqmodel", load=load_gptq)


BACKENDS: dict[str, Callable[[Artifact, LoadOptions], Backend]] = {
    "ctranslate2": _load_ctranslate2,
    "gptq": _load_gptq,
    "transformers": _load_transformers,
}
