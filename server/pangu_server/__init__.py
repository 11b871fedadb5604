"""Stage 3 of 4: an OpenAI-style completion server over an artifact (`pangu-serve`).

from pangu_server import load
with load("artifact") as model:
    print(model.complete("def fibonacci(n):", max_tokens=96, stop=["\\n\\n"]))
"""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pangu_server.backends.seam import Device, Draft, EngineChoice
    from pangu_server.local import Model


def load(
    artifact: str | PathLike[str],
    *,
    device: "Device" = "auto",
    engine: "EngineChoice" = "auto",
    threads: int | None = None,
    max_batch: int = 16,
    cache_bytes: int | None = None,
    draft: "Draft" = "prompt",
    graphs: bool = True,
) -> "Model":
    """Load an artifact into this process: the server's engine without a server. Seconds to minutes.

    Its files are there with their sizes; their hashes are not checked (`pangu-convert verify`). The parameters are the
    server's options, `cache_bytes` its `--cache-memory`.

    Raises:
        ArtifactError: the artifact is not whole or does not load.
        MissingExtra: the libraries of its format are not installed.
    """
    from pangu_server.backends.seam import LoadOptions
    from pangu_server.local import load_model
    from pangu_training.stage.command import serving_threads

    options = LoadOptions(
        device=device,
        engine=engine,
        threads=threads or serving_threads(),
        max_batch=max_batch,
        cache_bytes=cache_bytes,
        draft=draft,
        graphs=graphs,
    )
    return load_model(artifact, options)
