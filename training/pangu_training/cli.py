"""`pangu-train VERB …`: one module a verb."""

import argparse
import sys
from collections.abc import Sequence

from pangu_training import command, export, fit

VERBS = {
    "fit": (fit, "train a checkpoint on ranked pairs with the RRTF loss"),
    "export": (export, "make a checkpoint folder of a finished run, for pangu-convert"),
}


def parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="pangu-train",
        description="From problems to a checkpoint trained by RRTF (PanGu-Coder2, arXiv 2307.14936).",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, (module, help_text) in VERBS.items():
        module.add_arguments(verbs.add_parser(name, help=help_text, description=module.__doc__))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pangu-train`."""
    return command.run(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
