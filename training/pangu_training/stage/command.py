"""How every `pangu-*` command is put together, starts and ends: exit 0, or one line on stderr and exit 2 (130 for
Ctrl-C).

Verbs set `run` as a parser default; frameworks load inside it, after the arguments are parsed, so that
`--help` stays fast.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from pangu_training.stage.errors import PanguError

# transformers imports torchao where it is installed, and that logs its GPU files' absence, and more;
# accelerate takes a model with tied weights that is still empty for one whose weights are not tied
NOISY_LOGGERS = ("torchao", "torch.utils._pytree", "accelerate.utils.modeling")


def parser_of(
    prog: str, description: str, verbs: Mapping[str, tuple[ModuleType, str]]
) -> argparse.ArgumentParser:
    """The parser of a command whose verbs are modules, each with `add_arguments`: name -> (module, help)."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, (module, help_text) in verbs.items():
        module.add_arguments(subparsers.add_parser(name, help=help_text, description=module.__doc__))
    return parser


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument's type: an integer within bounds."""

    def number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            wanted = f"at least {least}" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    number.__name__ = "int"  # argparse: "invalid int value"
    return number


def number_within(least: float, most: float = math.inf) -> Callable[[str], float]:
    """An argument's type: a finite number within bounds."""

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not least <= value <= most:
            wanted = f"a number of {least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    number.__name__ = "float"
    return number


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how an artifact is served."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="(default: %(default)s)"
    )
    group.add_argument(
        "--threads",
        type=whole_number(1),
        default=len(os.sched_getaffinity(0)),
        help="compute threads (default: the CPUs we may use)",
    )


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, call the verb's `run(arguments)`, return the exit code.

    `PANGU_DEBUG=1` in the environment lets the traceback of an error through.
    """
    arguments = parser.parse_args(argv)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code: int | None = arguments.run(arguments)
        return code or 0
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (PanguError, OSError) as error:
        # OSError is the machine's word, not a fault of ours: no space, no permission, no such file.
        if os.environ.get("PANGU_DEBUG"):
            raise
        print(f"{parser.prog}: error: {describe(error)}", file=sys.stderr)
        return 2


def describe(error: Exception) -> str:
    """One line for `error`."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split())
