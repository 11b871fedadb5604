"""The weights of any artifact by transformers' own parameter names, one at a time.

    weights = open_weights(artifact, device)
    model = build(weights.config, artifact.manifest.architecture)
    for name, value in weights:
        ...  # a `Quantized` needs a module that multiplies it; a tensor goes to `place`
    complete(model, device)

Files are mapped into memory: a tensor that stays on the CPU as it is stored is never copied.
"""

from collections.abc import Callable

from pangu_convert.artifact import Artifact
from pangu_server.backends.torch.parameters import Weights


def open_weights(artifact: Artifact, device: str = "cpu") -> Weights:
    """The weights of `artifact`, to be read onto `device`. Names are checked now, what they hold when it is read.

    Raises:
        ArtifactError: a file is damaged, a parameter missing, or one there that the model does not have.
    """
    return OPENERS[artifact.manifest.format](artifact, device)


def _open_ctranslate2(artifact: Artifact, device: str) -> Weights:
    from pangu_server.backends.torch.ctranslate2_weights import open_ctranslate2

    return open_ctranslate2(artifact, device)


def _open_gptq(artifact: Artifact, device: str) -> Weights:
    from pangu_server.backends.torch.gptq_weights import open_gptq

    return open_gptq(artifact, device)


def _open_transformers(artifact: Artifact, device: str) -> Weights:
    from pangu_server.backends.torch.safetensors_weights import open_transformers

    return open_transformers(artifact, device)


OPENERS: dict[str, Callable[[Artifact, str], Weights]] = {
    "ctranslate2": _open_ctranslate2,
    "gptq": _open_gptq,
    "transformers": _open_transformers,
}
