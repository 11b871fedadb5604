"""`pangu-bench VERB …`: one function a verb, in a module of its own."""

import argparse
import sys
from collections.abc import Sequence

from pangu_bench import comparison, editor, humaneval, load, overlap, shape
from pangu_training.stage import command

VERBS: command.Verbs = {
    "compare": (
        comparison.compare,
        "memory, latency and score of several artifacts, and whether differences are real",
    ),
    "load": (
        load.measure_load,
        "throughput and latency of an artifact over the number of requests at a time",
    ),
    "editor": (
        editor.measure_editor,
        "what an editor feels: keystrokes into files, cancelled requests, accepted completions",
    ),
    "humaneval": (humaneval.score, "score a model on HumanEval or another suite"),
    "overlap": (overlap.draw_overlap, "which problems several models solve, and which only one of them"),
    "shape": (
        shape.measure_shape,
        "memory and ms/token of a 15.5 billion parameter model with random weights",
    ),
}


def parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    return command.parser_of(
        "pangu-bench",
        "What an artifact costs, what it solves, and whether a difference is real.",
        VERBS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pangu-bench`."""
    return command.run(parser(), argv, extra="bench")


if __name__ == "__main__":
    sys.exit(main())
