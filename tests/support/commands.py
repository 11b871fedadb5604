"""`pangu-convert` in this process, prompts for what it makes, and artifacts made by it once."""

from pathlib import Path

import pytest

from pangu_convert import cli
from support.once import once

PROMPTS = (
    "def fibonacci(n):",
    "import os\n\nfor name in os.listdir('.'):\n    print(",
    "# Größe in Metern, 测试 🙂\nheight = ",
    "x",
)
# What several tests quantize with GPTQ, which takes its while: `artifacts(*GPTQ_4)`, four bits in groups of 128.
SMALL = ("--samples", "4", "--sequence-length", "64")
GPTQ_4 = ("tiny_bigcode", "gptq", *SMALL)
GPTQ_MIXED = (*GPTQ_4, "--eight-bits", "c_fc", "last", "--mse", "2.4", "--gptaq")
GPTQ_8 = ("tiny_qwen2", "gptq", "--bits", "8", "--group-size", "64", "--act-order", *SMALL)


def pangu_convert(*arguments: object) -> None:
    """Run the command in this process; it must succeed."""
    assert cli.main([str(argument) for argument in arguments]) == 0


class Artifacts:
    """`artifacts("smollm2", "ctranslate2", "--quantization", "int8")` -> its folder."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self._folder, self._request = folder, request

    def __call__(self, checkpoint: str, *arguments: str) -> Path:
        output = self._folder / "-".join([checkpoint, *(word.strip("-") for word in arguments)])
        source: Path = self._request.getfixturevalue(checkpoint)
        verb, *options = arguments
        return once(output, lambda: pangu_convert(verb, source, "--output", output, *options))
