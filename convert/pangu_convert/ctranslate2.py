"""`pangu-convert ctranslate2`: a CTranslate2 artifact from a checkpoint, by the library's own converter.

int8 is symmetric, one scale an output row, without calibration; activations are quantized at run time.
"""

import argparse
import json
from pathlib import Path

from pangu_convert.conversion import Written, add_conversion_arguments, convert
from pangu_training.checkpoint import Checkpoint, read_json
from pangu_training.errors import CheckpointError
from pangu_training.output import write_file

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
        dtype=lambda checkpoint: (
            quantization if "float" in quantization and "_" not in quantization else checkpoint.dtype
        ),
        bytes_per_weight=QUANTIZATIONS[quantization],
        write=write,
    )


def write_ctranslate2(checkpoint: Checkpoint, folder: Path, quantization: str) -> None:
    """Write `model.bin`, `config.json` and `vocabulary.json` into `folder`; loads the whole model.

    Raises:
        CheckpointError: the weights do not fit the architecture.
    """
    from ctranslate2.converters import TransformersConverter
    from transformers.utils import logging

    logging.set_verbosity_error()
    converter = TransformersConverter(str(checkpoint.path), low_cpu_mem_usage=True)
    try:
        # The folder is empty but exists, hence `force`.
        converter.convert(str(folder), quantization=quantization, force=True)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path} does not convert: {error}") from error
    # For a GPTBigCode tokenizer without an unknown token the library writes null, which it cannot load.
    config = read_json(folder / "config.json")
    mended = {
        name: "" if value is None and name.endswith("_token") else value for name, value in config.items()
    }
    write_file(folder / "config.json", (json.dumps(mended, indent=2) + "\n").encode())
