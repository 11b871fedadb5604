"""What every verb asks a model with: the suite, how it is shown, how answers are drawn; as one object."""

import argparse
from dataclasses import dataclass
from typing import NamedTuple

from pangu_training.evaluation.styles import STYLES
from pangu_training.evaluation.suites import READERS
from pangu_training.stage.errors import PanguError
from pangu_training.stage.options import number_within, whole_number


class UsageError(PanguError):
    """The command's arguments do not go together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How a model is asked."""

    suite: str
    style: str
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None
    concurrency: int
    limit: int | None
    unsafe: bool


class Running(NamedTuple):
    """A server that runs already; `name` is what results call it, None for its model's own."""

    url: str
    name: str | None


def running_server(text: str) -> Running:
    """An argument's type: `URL` or `URL=NAME`."""
    url, _, name = text.partition("=")
    return Running(url, name or None)


def add_cost_arguments(
    parser: argparse.ArgumentParser,
    *,
    prompt_tokens: list[int],
    new_tokens: int,
    context: int,
    warmup: int,
    repeats: int,
) -> None:
    """Declare what `CostOptions.of` reads, with these defaults."""
    group = parser.add_argument_group("costs")
    group.add_argument(
        "--prompt-tokens",
        nargs="+",
        type=whole_number(1),
        default=prompt_tokens,
        metavar="N",
        help=f"(default: {' '.join(map(str, prompt_tokens))})",
    )
    group.add_argument(
        "--new-tokens", type=whole_number(2), default=new_tokens, help="(default: %(default)s)"
    )
    group.add_argument(
        "--context",
        type=whole_number(3),
        default=context,
        help="at which memory peaks (default: %(default)s)",
    )
    group.add_argument(
        "--warmup", type=whole_number(0), default=warmup, help="requests a length (default: %(default)s)"
    )
    group.add_argument(
        "--repeats", type=whole_number(1), default=repeats, help="requests a length (default: %(default)s)"
    )


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `answer_options` reads."""
    group = parser.add_argument_group("questions")
    group.add_argument(
        "--suite",
        default="humaneval",
        metavar="SUITE",
        help=f"humaneval, or FORM:FILE with FORM one of {', '.join(READERS)}; of leetcode also FILE#A-B, "
        "question ids (default: %(default)s)",
    )
    group.add_argument(
        "--style", default="completion", choices=STYLES, help="prompt style (default: %(default)s)"
    )
    group.add_argument("--limit", type=whole_number(1), metavar="K", help="the first K problems only")
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--samples", type=whole_number(1), default=1, metavar="N", help="a problem (default: %(default)s)"
    )
    group.add_argument(
        "--temperature", type=number_within(0, 2), default=0.0, help="0 is greedy (default: %(default)s)"
    )
    group.add_argument(
        "--top-p", type=number_within(0, 1), default=0.95, help="when sampling (default: %(default)s)"
    )
    group.add_argument(
        "--max-tokens", type=whole_number(1), default=512, help="an answer (default: %(default)s)"
    )
    group.add_argument(
        "--seed", type=int, help="repeatable samples; slower with CTranslate2 (default: draw anew)"
    )
    group.add_argument(
        "--concurrency",
        type=whole_number(1),
        default=1,
        help="requests at a time; above 1 near-ties of a greedy answer can fall otherwise (default: %(default)s)",
    )
    group.add_argument(
        "--unsafe",
        action="store_true",
        help="run answers even where they cannot be confined: they can read your files",
    )


def answer_options(arguments: argparse.Namespace) -> AnswerOptions:
    """What was parsed.

    Raises:
        UsageError: the options do not go together.
    """
    names = AnswerOptions.__dataclass_fields__
    options = AnswerOptions(**{name: getattr(arguments, name) for name in names})
    if options.samples > 1 and options.temperature == 0:
        raise UsageError("--samples above 1 are all alike without a --temperature above 0: give one")
    return options
