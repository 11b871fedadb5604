"""The weights of any artifact by transformers' own parameter names, one at a time.

    weights = open_weights(artifact)
    model = build(weights.config, artifact.manifest.architecture)
    for name, value in weights:
        ...  # a `Quantized` becomes a module of ours; a tensor: `place(model, name, value, device, weights.dtype)`
    complete(model, device)

Files are mapped into memory, not read: a tensor costs memory once it is copied somewhere.
"""

from collections.abc import Callable

from pangu_convert.artifact import Artifact
from pangu_server.backends.torch.parameters import Weights


def open_weights(artifact: Artifact) -> Weights:
    """The weights of `artifact`. Names are checked now, what they hold when it is read.

    Raises:
        ArtifactError: a file is damaged, a parameter missing, or one there that the model does not have.
    """
    return OPENERS[artifact.manifest.format](artifact)


def _open_ctranslate2(artifact: Artifact) -> Weights:
    from pangu_server.backends.torch.ctranslate2_weights import open_ctranslate2

    return open_ctranslate2(artifact)


def _open_transformers(artifact: Artifact) -> Weights:
    from pangu_server.backends.torch.safetensors_weights import open_transformers

    return open_transformers(artifact)


OPENERS: dict[str, Callable[[Artifact], Weights]] = {
    "ctranslate2": _open_ctranslate2,
    "transformers": _open_transformers,
}
