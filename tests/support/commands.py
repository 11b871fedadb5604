"""`pangu-convert` in this process, prompts for what it makes, and artifacts made by it once."""

from pathlib import Path

import pytest

from pangu_convert import cli

PROMPTS = (
    "def fibonacci(n):",
    "import os\n\nfor name in os.listdir('.'):\n    print(",
    "# Größe in Metern, 测试 🙂\nheight = ",
    "x",
)


def pangu_convert(*arguments: object) -> None:
    """Run the command in this process; it must succeed."""
    assert cli.main([str(argument) for argument in arguments]) == 0


class Artifacts:
    """`artifacts("smollm2", "ctranslate2", "--quantization", "int8")` -> its folder."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self._folder, self._request = folder, request

    def __call__(self, checkpoint: str, *arguments: str) -> Path:
        output = self._folder / "-".join([checkpoint, *(word.strip("-") for word in arguments)])
        if not output.exists():
            verb, *options = arguments
            pangu_convert(verb, self._request.getfixturevalue(checkpoint), "--output", output, *options)
        return output
