"""Stage 2 of 4: from a checkpoint folder to an artifact that the server loads (`pangu-convert`).

from pangu_convert import convert
artifact = convert("checkpoint", "artifact", to="gptq", bits=8)
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pangu_convert.artifact import Artifact


def convert(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str],
    to: Literal["ctranslate2", "gptq", "transformers"] = "ctranslate2",
    **options: Any,
) -> "Artifact":
    """Make the artifact `output` of the folder `checkpoint`, as the verb `to` does; `options` are the verb's.

    Raises:
        PanguError: the verb's, as on the command line.
        TypeError: the verb has no such option.
    """
    from pangu_convert.ctranslate2 import ctranslate2_artifact
    from pangu_convert.gptq import gptq_artifact
    from pangu_convert.transformers import transformers_artifact
    from pangu_training.stage.command import options_class
    from pangu_training.stage.options import options_of
    from pangu_training.stage.paths import check_paths

    makers: dict[str, Callable[[Any], Artifact]] = {
        "ctranslate2": ctranslate2_artifact,
        "gptq": gptq_artifact,
        "transformers": transformers_artifact,
    }
    if to not in makers:
        raise ValueError(f"to={to!r} is none of {', '.join(makers)}")
    make = makers[to]
    paths = {"checkpoint": Path(checkpoint), "output": Path(output)}
    filled = options_of(options_class(make), **paths, **options)
    check_paths(filled)
    return make(filled)
