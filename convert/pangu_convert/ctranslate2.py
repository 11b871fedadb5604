"""`pangu-convert ctranslate2`: a CTranslate2 artifact from a checkpoint of any size.

int8 is symmetric, one scale an output row; activations are quantized at run time, one scale a token. So that this loses
less, int8 models are smoothed first, on calibration text; see `smoothing`.

The artifact also holds the checkpoint's config, from which the torch engine makes the model: the library's own tells
too little. A model whose tokens attend to the last N only gets a context of N, see
`ctranslate2_loaders.attention_window`.

Without smoothing the files are those of the library's own converter, byte for byte but for what it gets wrong; see
`ctranslate2_files`, also for how a model that does not fit into memory comes through.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pangu_convert.artifact import CHECKPOINT_CONFIG, Artifact
from pangu_convert.calibration import CalibrationOptions, calibration_data
from pangu_convert.conversion import ConversionOptions, Written, convert, report
from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.options import nested, option
from pangu_training.stage.output import write_json

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CTranslate2Options:
    """What to convert, to which type, and what smooths it."""

    conversion: ConversionOptions = nested(ConversionOptions)
    quantization: str = option("type of the weights", "int8", choices=QUANTIZATIONS)
    smooth: bool = option(
        "even out the sizes of activation channels, by calibration text", True, group="int8"
    )
    calibration: CalibrationOptions = nested(CalibrationOptions, group="int8", samples=16)


def to_ctranslate2(options: CTranslate2Options) -> None:
    """Convert, and say what was made."""
    report(ctranslate2_artifact(options))


def ctranslate2_artifact(options: CTranslate2Options) -> Artifact:
    """The checkpoint as a CTranslate2 artifact; raises as `convert` and `calibration_data` do."""
    from pangu_convert.ctranslate2_files import STORED_TYPES

    quantization = options.quantization

    def write(checkpoint: Checkpoint, folder: Path) -> Written:
        data = None
        if options.smooth and STORED_TYPES[quantization][0] == "int8":
            data = calibration_data(options.calibration, checkpoint)
        write_ctranslate2(checkpoint, folder, quantization, data.rows if data else ())
        write_json(folder / CHECKPOINT_CONFIG, checkpoint.config)
        seed = options.calibration.seed
        return Written(
            weight_files=("model.bin",),
            context_length=_context_length(checkpoint),
            calibration={"method": "SmoothQuant", **data.record, "seed": seed} if data else None,
        )

    return convert(
        options.conversion,
        format="ctranslate2",
        quantization=lambda _: quantization,
        dtype=lambda checkpoint: STORED_TYPES[quantization][1] or checkpoint.dtype,
        bytes_per_weight=QUANTIZATIONS[quantization],
        write=write,
    )


def _context_length(checkpoint: Checkpoint) -> int:
    from pangu_convert.ctranslate2_loaders import attention_window
    from pangu_training.stage.architecture import model_config

    return within_window(attention_window(model_config(checkpoint)), checkpoint.context_length)


def within_window(window: int | None, context: int) -> int:
    """The context in tokens that CTranslate2 computes rightly; says on stderr where an attention window cuts it."""
    if window and window < context:
        print(
            f"caution: CTranslate2 cannot slide the model's attention window: the context is the window's {window} "
            f"tokens, not {context}; the other formats have all",
            file=sys.stderr,
        )
        return window
    return context


def write_ctranslate2(
    checkpoint: Checkpoint, folder: Path, quantization: str, rows: Sequence[Sequence[int]] = ()
) -> None:
    """Write `model.bin`, `config.json` and `vocabulary.json` into `folder`; see `ctranslate2_files.stream`."""
    from pangu_convert.ctranslate2_files import stream

    stream(checkpoint, folder, quantization, rows)
