"""`pangu-convert gptq`: a 4 or 8 bit GPTQ artifact, calibrated on code, in AutoGPTQ's first format.

`quantize_config.json` next to the weights and `quantization_config` in `config.json`: what auto-gptq,
GPTQModel, vLLM and TGI read. gptqmodel quantizes in a process of its own (`gptq_worker`).
"""

import os
import re
import shutil
import sys
from argparse import BooleanOptionalAction
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pangu_convert.artifact import Artifact
from pangu_convert.calibration import CalibrationOptions, calibration_data
from pangu_convert.conversion import ConversionOptions, Written, convert, report
from pangu_convert.gptq_process import run_worker
from pangu_convert.gptq_worker import Job
from pangu_convert.weights import link_model, with_rope_theta
from pangu_training.stage.checkpoint import CONFIG, QUANTIZE_CONFIG, SHARD_INDEX, Checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.options import nested, number_within, option
from pangu_training.stage.output import write_json

GROUP_SIZES = (32, 64, 128, 256, -1)  # -1: one group an input row
DEFAULT_GROUP_SIZES = (128, 64, 32)
FIRST, LAST = "first", "last"
BLOCKS = (".h.", ".layers.")  # in the names of a block's tensors: GPT-2's kind, then all others
PACKED = 32  # input and output widths must be multiples of it: the kernels' and auto-gptq's rule
WORK = "work"


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqOptions:
    """What to quantize, how finely, and on what text."""

    conversion: ConversionOptions = nested(ConversionOptions)
    bits: Literal[4, 8] = option("bits a weight", 4)
    group_size: int | None = option(
        f"weights that share a scale: {', '.join(map(str, GROUP_SIZES))}, -1 for a whole row (default: the largest of "
        f"{', '.join(map(str, DEFAULT_GROUP_SIZES))} that divides the input widths)",
        None,
        metavar="N",
    )
    act_order: bool = option(
        "quantize columns by activation size (desc_act): a little closer, slower to run",
        False,
        action=BooleanOptionalAction,
    )
    damp: float = option("share of the mean diagonal added to the Hessian", 0.05)
    eight_bits: tuple[str, ...] = option(
        "what keeps 8 bits in a 4-bit model: layers by the end of their name, such as down_proj, and all layers of the "
        f"'{FIRST}' or '{LAST}' block; GPTQModel and vLLM read that, auto-gptq does not",
        (),
        metavar="LAYER",
    )
    mse: float = option(
        "choose scales for the least sum of rounding errors to this power, such as 2.4; 0: for the largest weight",
        0.0,
        type=number_within(0, 16),
    )
    gptaq: bool = option(
        "also correct for what earlier layers lost (GPTAQ); takes about twice the time", False
    )
    calibration: CalibrationOptions = nested(CalibrationOptions, samples=32)


def to_gptq(options: GptqOptions) -> None:
    """Quantize, and say what was made."""
    report(gptq_artifact(options))


def gptq_artifact(options: GptqOptions) -> Artifact:
    """The checkpoint as a GPTQ artifact; raises as `convert`, `fitting_group_size` and `write_gptq` do."""
    bits = options.bits

    def quantization(checkpoint: Checkpoint) -> str:
        group_size = fitting_group_size(checkpoint, options.group_size)
        name = f"gptq-int{bits}-g{group_size}" if group_size > 0 else f"gptq-int{bits}"
        return f"{name}+int8" if eight_bit_layers(checkpoint, options) else name

    def write(checkpoint: Checkpoint, folder: Path) -> Written:
        group_size = fitting_group_size(checkpoint, options.group_size)
        if options.group_size is None and group_size != DEFAULT_GROUP_SIZES[0]:
            print(
                f"group size {group_size}, the largest that divides the layers' input widths", file=sys.stderr
            )
        return write_gptq(checkpoint, folder, options, group_size)

    return convert(
        options.conversion,
        format="gptq",
        quantization=quantization,
        dtype=lambda checkpoint: checkpoint.dtype,
        # Embeddings stay, and a tied one is written twice: what makes most of a small model.
        bytes_per_weight=bits / 8 + 0.7,
        write=write,
    )


def fitting_group_size(checkpoint: Checkpoint, group_size: int | None) -> int:
    """`group_size`, or the largest default one.

    Raises:
        CheckpointError: it does not divide the input width of every quantized layer.
    """
    shapes = linear_shapes(checkpoint)
    odd = {width for shape in shapes for width in shape if width % PACKED}
    if odd or not shapes:
        raise CheckpointError(
            f"{checkpoint.path} has layers of width {', '.join(map(str, sorted(odd)))}, no multiple of {PACKED}: "
            "GPTQ's packed format does not hold them"
        )
    input_widths = sorted({inputs for _, inputs in shapes})
    fitting = [size for size in GROUP_SIZES if size == -1 or all(width % size == 0 for width in input_widths)]
    if group_size is None:
        return next(size for size in DEFAULT_GROUP_SIZES if size in fitting)  # PACKED is one of them
    if group_size not in fitting:
        raise CheckpointError(
            f"--group-size {group_size} does not divide the input widths of {checkpoint.path} "
            f"({', '.join(map(str, input_widths))}): choose from {', '.join(map(str, fitting))}"
        )
    return group_size


def eight_bit_layers(checkpoint: Checkpoint, options: GptqOptions) -> tuple[str, ...]:
    """Regular expressions, as gptqmodel's `dynamic` has them, for the full names of what keeps 8 bits.

    Raises:
        CheckpointError: no layer bears such a name, or all have 8 bits already.
    """
    if options.eight_bits and options.bits == 8:
        raise CheckpointError("--eight-bits is for a model of 4 bits: leave it or --bits 8 out")
    layers = [name.removesuffix(".weight") for name in linear_names(checkpoint)]
    endings = sorted({layer.rpartition(".")[2] for layer in layers})
    rules = []
    for part in dict.fromkeys(options.eight_bits):
        if part in (FIRST, LAST):
            number = 0 if part == FIRST else num_blocks(checkpoint) - 1
            rules.append(rf".*\.(h|layers)\.{number}\..*")
        elif any(f".{layer}".endswith(f".{part}") for layer in layers):
            rules.append(rf".*\.{re.escape(part)}$")
        else:
            raise CheckpointError(
                f"--eight-bits {part}: {checkpoint.path} has no such layer; name {FIRST}, {LAST}, {', '.join(endings)}"
            )
    return tuple(rules)


def num_blocks(checkpoint: Checkpoint) -> int:
    """Transformer blocks of the checkpoint."""
    return int(checkpoint.config.get("n_layer") or checkpoint.config["num_hidden_layers"])


def linear_names(checkpoint: Checkpoint) -> list[str]:
    """Names of the matrices inside the blocks: the layers that are quantized."""
    return [
        name
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) == 2 and any(block in name for block in BLOCKS)
    ]


def linear_shapes(checkpoint: Checkpoint) -> set[tuple[int, int]]:
    """(outputs, inputs) of the layers that are quantized."""
    inside = [checkpoint.tensors[name].shape for name in linear_names(checkpoint)]
    return {(shape[0], shape[1]) for shape in inside}


def write_gptq(checkpoint: Checkpoint, folder: Path, options: GptqOptions, group_size: int) -> Written:
    """Draw the calibration rows, quantize, and put weights and configs into `folder`.

    Raises:
        CalibrationError, CheckpointError, QuantizationError: see `calibration_data`, `run_worker`.
    """
    data = calibration_data(options.calibration, checkpoint)
    work = folder / WORK
    source = work / "in"
    source.mkdir(parents=True)
    link_model(checkpoint, source)
    job = Job(
        parent_process=os.getpid(),
        checkpoint=str(source.resolve()),
        folder=str(work / "out"),
        dtype=checkpoint.dtype,
        bits=options.bits,
        group_size=group_size,
        act_order=options.act_order,
        damp=options.damp,
        eight_bits=eight_bit_layers(checkpoint, options),
        mse=options.mse,
        gptaq=options.gptaq,
        rows=data.rows,
    )
    effective = run_worker(job, work, num_blocks(checkpoint))
    weight_files = sorted((work / "out").glob("*.safetensors"))
    for file in (*weight_files, work / "out" / SHARD_INDEX):
        if file.is_file():
            file.rename(folder / file.name)
    shutil.rmtree(work)
    write_configs(checkpoint, folder, job)
    return Written(
        weight_files=tuple(file.name for file in weight_files),
        calibration={
            **data.record,
            "seed": options.calibration.seed,
            "bits": job.bits,
            "group_size": job.group_size,
            "act_order": job.act_order,
            "damp": job.damp,
            "eight_bits": list(options.eight_bits),
            "mse": job.mse,
            "gptaq": job.gptaq,
            "dtype": job.dtype,
            **effective,
        },
    )


def write_configs(checkpoint: Checkpoint, folder: Path, job: Job) -> None:
    """Write `quantize_config.json` and `config.json`: the checkpoint's own, with the quantization added."""
    quantization = {
        "bits": job.bits,
        "group_size": job.group_size,
        "damp_percent": job.damp,
        "desc_act": job.act_order,
        "static_groups": False,
        "sym": True,
        "true_sequential": True,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        **({"dynamic": job.dynamic} if job.eight_bits else {}),
    }
    config = {
        **with_rope_theta(checkpoint.config),
        "dtype": checkpoint.dtype,
        "quantization_config": quantization,
        "torch_dtype": checkpoint.dtype,  # as loaders older than transformers 5 call it
    }
    for name, value in ((QUANTIZE_CONFIG, quantization), (CONFIG, config)):
        write_json(folder / name, value)
