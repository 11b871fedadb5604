"""`pangu-convert transformers`: the unquantized artifact, the baseline of every comparison.

The weights are linked, not copied, where they keep their type.
"""

from dataclasses import dataclass
from pathlib import Path

from pangu_convert.artifact import Artifact
from pangu_convert.conversion import ConversionOptions, Written, convert, report
from pangu_convert.weights import DTYPES, write_model
from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.options import nested, option


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersOptions:
    """What to take as it is, or in another type."""

    conversion: ConversionOptions = nested(ConversionOptions)
    dtype: str | None = option("type of the weights (default: the checkpoint's)", None, choices=DTYPES)


def to_transformers(options: TransformersOptions) -> None:
    """Convert, and say what was made."""
    report(transformers_artifact(options))


def transformers_artifact(options: TransformersOptions) -> Artifact:
    """The checkpoint as an artifact of its own weights; raises as `convert` does."""
    dtype = options.dtype

    def write(checkpoint: Checkpoint, folder: Path) -> Written:
        write_model(checkpoint, folder, dtype)
        return Written(weight_files=tuple(file.name for file in checkpoint.weight_files))

    return convert(
        options.conversion,
        format="transformers",
        quantization=lambda _: "none",
        dtype=lambda checkpoint: dtype or checkpoint.dtype,
        bytes_per_weight={None: 0.0, "float32": 4.0}.get(dtype, 2.0),
        write=write,
    )
