"""`pangu-convert transformers`: the unquantized artifact, the baseline of every comparison.

The weights are linked, not copied, where they keep their type.
"""

import argparse
from pathlib import Path

from pangu_convert.conversion import Written, add_conversion_arguments, convert
from pangu_convert.weights import DTYPES, write_model
from pangu_training.stage.checkpoint import Checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_conversion_arguments(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: the checkpoint's)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Convert `arguments.checkpoint` into `arguments.output`."""
    dtype: str | None = arguments.dtype

    def write(checkpoint: Checkpoint, folder: Path) -> Written:
        write_model(checkpoint, folder, dtype)
        return Written(weight_files=tuple(file.name for file in checkpoint.weight_files))

    convert(
        arguments,
        format="transformers",
        quantization="none",
        dtype=lambda checkpoint: dtype or checkpoint.dtype,
        bytes_per_weight={None: 0.0, "float32": 4.0}.get(dtype, 2.0),
        write=write,
    )
