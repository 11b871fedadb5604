"""`pangu-train VERB …`: one module a verb."""

import argparse
import sys
from collections.abc import Sequence

from pangu_training import command, curve, export, fit

VERBS = {
    "fit": (fit, "train a checkpoint on ranked pairs with the RRTF loss"),
    "curve": (curve, "train on parts of the pairs, and draw pass@1 over data size and epochs"),
    "export": (export, "make a checkpoint folder of a finished run, for pangu-convert"),
}


def parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    return command.parser_of(
        "pangu-train",
        "From problems to a checkpoint trained by RRTF (PanGu-Coder2, arXiv 2307.14936).",
        VERBS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pangu-train`."""
    return command.run(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
