"""Bytes against KL of weights that are rounded a row at a time: int8, FP8 (e4m3), and what groups of 128 change.

    python docs/scripts/rounded_weights.py CHECKPOINT [--windows 4]

Every linear matrix is replaced by its rounded self; products stay in float32. So this is the loss of the number format
alone: no calibration, no kernel, no rounded activations. Text and windows are those of `pangu-convert verify`.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from pangu_convert.code_text import evaluation_windows
from pangu_convert.fidelity import FidelityMeter
from pangu_convert.scoring import TorchScorer
from pangu_training.stage.checkpoint import TOKENIZER
from pangu_training.stage.vocabulary import read_tokenizer

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


def int8(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to 255 steps of a scale a row."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale


def fp8(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to e4m3 (3 bits after the point, largest 448) with a scale a row."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def grouped(rounded: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same with a scale for 128 inputs of a row."""
    return lambda weight: rounded(weight.unflatten(-1, (-1, 128))).flatten(-2)


FORMATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int8, a scale a row": int8,
    "FP8 e4m3, a scale a row": fp8,
    "int8, groups of 128": grouped(int8),
    "FP8 e4m3, groups of 128": grouped(fp8),
}


def main() -> None:
    """Measure each format and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--windows", type=int, default=4, help="pieces of 512 tokens (default: %(default)s)")
    arguments = parser.parse_args()
    tokenizer = read_tokenizer(arguments.checkpoint / TOKENIZER)
    windows = evaluation_windows(tokenizer, num_windows=arguments.windows, window_tokens=512).windows
    model = AutoModelForCausalLM.from_pretrained(
        arguments.checkpoint, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    scorer = TorchScorer(model)
    expected = [scorer.log_probabilities(window).half() for window in windows]
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    plain = [module.weight for module in linear]
    print("| weights | mean KL | its range over windows | same top-1 | relative error of a weight |")
    print("|---|---|---|---|---|")
    for name, rounded in FORMATS.items():
        errors = []
        for module, weight in zip(linear, plain, strict=True):
            with torch.no_grad():
                module.weight = torch.nn.Parameter(rounded(weight), requires_grad=False)
                errors.append(float((module.weight - weight).norm() / weight.norm()))
        meter, means = FidelityMeter(), []
        for window, source in zip(tqdm(windows, desc=name), expected, strict=True):
            found = scorer.log_probabilities(window)
            one = FidelityMeter()
            for each in (meter, one):
                each.add(window, source.float(), found, first=1)
            means.append(one.result().kl_mean)
        result = meter.result()
        print(
            f"| {name} | {result.kl_mean:.5f} | {min(means):.5f} to {max(means):.5f} | {result.same_top1:.2%} "
            f"| {statistics.median(errors):.2%} |"
        )


if __name__ == "__main__":
    main()
