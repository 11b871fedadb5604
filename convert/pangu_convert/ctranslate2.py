"""`pangu-convert ctranslate2`: a CTranslate2 artifact from a checkpoint of any size.

The files are those of the library's own converter, byte for byte but for what it gets wrong; see `streaming`,
also for how a model that does not fit into memory comes through.

int8 is symmetric, one scale an output row, without calibration; activations are quantized at run time.
"""

import argparse
from pathlib import Path

from pangu_convert.conversion import Written, add_conversion_arguments, convert
from pangu_training.checkpoint import Checkpoint

QUANTIZATIONS = {  # name -> bytes a weight, roughly
    "int8": 1.1,
    "int8_float32": 1.2,
    "int8_float16": 1.1,
    "int8_bfloat16": 1.1,
    "int16": 2.1,
    "float16": 2.0,
    "bfloat16": 2.0,
    "float32": 4.0,
}

# Quantization -> the type of matrices, and of everything else (None: the checkpoint's).
STORED_TYPES = {
    "int8": ("int8", None),
    "int8_float32": ("int8", "float32"),
    "int8_float16": ("int8", "float16"),
    "int8_bfloat16": ("int8", "bfloat16"),
    "int16": ("int16", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float32": ("float32", "float32"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_conversion_arguments(parser)
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="int8",
        help="type of the weights (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Convert `arguments.checkpoint` into `arguments.output`."""
    quantization = str(arguments.quantization)

    def write(checkpoint: Checkpoint, folder: Path) -> Written:
        write_ctranslate2(checkpoint, folder, quantization)
        return Written(weight_files=("model.bin",))

    convert(
        arguments,
        format="ctranslate2",
        quantization=quantization,
        dtype=lambda checkpoint: STORED_TYPES[quantization][1] or checkpoint.dtype,
        bytes_per_weight=QUANTIZATIONS[quantization],
        write=write,
    )


def write_ctranslate2(checkpoint: Checkpoint, folder: Path, quantization: str) -> None:
    """Write `model.bin`, `config.json` and `vocabulary.json` into `folder`; see `streaming.stream`."""
    from pangu_convert.streaming import stream

    stream(checkpoint, folder, quantization)
