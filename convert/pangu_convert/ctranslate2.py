"""`pangu-convert ctranslate2`: a CTranslate2 artifact from a checkpoint of any size.

int8 is symmetric, one scale an output row; activations are quantized at run time, one scale a token. So that this loses
less, int8 models are smoothed first, on calibration text; see `smoothing`.

Without smoothing the files are those of the library's own converter, byte for byte but for what it gets wrong; see
`ctranslate2_files`, also for how a model that does not fit into memory comes through.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pangu_convert.calibration import add_calibration_arguments, calibration_data
from pangu_convert.conversion import Written, add_conversion_arguments, convert
from pangu_training.stage.checkpoint import Checkpoint

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_conversion_arguments(parser)
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="int8",
        help="type of the weights (default: %(default)s)",
    )
    group = parser.add_argument_group("int8")
    group.add_argument(
        "--smooth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="even out the sizes of activation channels, by calibration text (default: %(default)s)",
    )
    add_calibration_arguments(group, samples=16)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Convert `arguments.checkpoint` into `arguments.output`."""
    from pangu_convert.ctranslate2_files import STORED_TYPES

    quantization = str(arguments.quantization)

    def write(checkpoint: Checkpoint, folder: Path) -> Written:
        data = None
        if arguments.smooth and STORED_TYPES[quantization][0] == "int8":
            data = calibration_data(arguments, checkpoint)
        write_ctranslate2(checkpoint, folder, quantization, data.rows if data else ())
        return Written(
            weight_files=("model.bin",),
            calibration={"method": "SmoothQuant", **data.record, "seed": arguments.seed} if data else None,
        )

    convert(
        arguments,
        format="ctranslate2",
        quantization=quantization,
        dtype=lambda checkpoint: STORED_TYPES[quantization][1] or checkpoint.dtype,
        bytes_per_weight=QUANTIZATIONS[quantization],
        write=write,
    )


def write_ctranslate2(
    checkpoint: Checkpoint, folder: Path, quantization: str, rows: Sequence[Sequence[int]] = ()
) -> None:
    """Write `model.bin`, `config.json` and `vocabulary.json` into `folder`; see `ctranslate2_files.stream`."""
    from pangu_convert.ctranslate2_files import stream

    stream(checkpoint, folder, quantization, rows)
