"""The seam between the engine and a model: token ids in, token ids out.

A backend owns its scheduling and runs on threads of its own. No HTTP, no text and no tensors cross here.
Its implementation is chosen by the artifact's format and imported only then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pangu_convert.artifact import Artifact, ArtifactError

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How one completion is drawn."""

    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # in (0, 1]
    end_token_ids: tuple[int, ...] = ()  # generation stops after any of these


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How an artifact is loaded."""

    device: Device = "auto"
    threads: int = 1  # compute threads on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What runs after loading, which can differ from what the artifact asks for."""

    name: str
    device: str
    compute_type: str
    weight_bytes: int  # of the weights in memory where the library tells, else of the files
    threads: int
    kernel: str | None = None  # what multiplies quantized matrices, where there is a choice


class Listener(Protocol):
    """Told what becomes of one submitted prompt, on the backend's thread. `on_end` comes last, once."""

    def on_start(self) -> None:
        """It has left the queue."""

    def on_token(self, token_id: int) -> bool:
        """One more token, an end token included. True stops this generation here."""

    def on_end(self, error: Exception | None) -> None:
        """No more tokens: finished, stopped, cancelled, or failed with `error`."""


class Backend(Protocol):
    """A loaded model."""

    @property
    def info(self) -> BackendInfo:
        """What runs."""

    def submit(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> Any:
        """Queue a prompt; returns the ticket that `cancel` takes. Never blocks."""

    def cancel(self, ticket: Any) -> None:
        """Drop a queued prompt, or stop a running one after its current step. No-op once it has ended."""

    def close(self) -> None:
        """Cancel everything and release the model."""


def load_backend(artifact: Artifact, options: LoadOptions) -> Backend:
    """Load `artifact`; takes seconds to minutes.

    Raises:
        ArtifactError: no backend for the format, its libraries are missing, or the weights do not load.
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
        raise ArtifactError(f"{error}: pip install 'pangu-coder2[{extra}]'") from error


def _load_ctranslate2(artifact: Artifact, options: LoadOptions) -> Backend:
    from pangu_server.backends.ctranslate2 import CTranslate2Backend

    return CTranslate2Backend(artifact, options)


def _load_transformers(artifact: Artifact, options: LoadOptions) -> Backend:
    from pangu_server.backends.transformers import TransformersBackend

    return TransformersBackend(artifact, options)


def _load_gptq(artifact: Artifact, options: LoadOptions) -> Backend:
    from pangu_server.backends.gptq import load_gptq
    from pangu_server.backends.transformers import TransformersBackend

    return TransformersBackend(artifact, options, name="gptqmodel", load=load_gptq)


BACKENDS: dict[str, Callable[[Artifact, LoadOptions], Backend]] = {
    "ctranslate2": _load_ctranslate2,
    "gptq": _load_gptq,
    "transformers": _load_transformers,
}
