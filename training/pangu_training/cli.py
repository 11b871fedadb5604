"""`pangu-train VERB …`: one function a verb, in a module of its own."""

import argparse
import sys
from collections.abc import Sequence

from pangu_training.data import clean, evolve, problems, rank, sample, tests
from pangu_training.rrtf import curve, export, fit
from pangu_training.stage import command

VERBS: command.Verbs = {
    "problems": (
        problems.collect_problems,
        "turn a benchmark's problems that have tests into problems in words",
    ),
    "evolve": (evolve.evolve, "make problems harder, by a model behind an OpenAI-style server"),
    "clean": (clean.clean, "filter problems, remove near duplicates and what benchmarks have"),
    "tests": (
        tests.write_tests,
        "write tests for problems that have none, by a model's agreement with itself",
    ),
    "sample": (sample.sample, "responses to problems from the student and from its teachers"),
    "rank": (rank.rank, "run responses against their problems' tests, and make ranked pairs of them"),
    "fit": (fit.fit, "train a checkpoint on ranked pairs with the RRTF loss"),
    "curve": (curve.curve, "train on parts of the pairs, and draw pass@1 over data size and epochs"),
    "export": (export.export, "make a checkpoint folder of a finished run, for pangu-convert"),
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
    return command.run(parser(), argv, extra="train")


if __name__ == "__main__":
    sys.exit(main())
