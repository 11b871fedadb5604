"""Fill in the middle (Bavarian et al. 2022, arXiv 2207.14255): the control tokens, as the model families write them.

A prompt is prefix token, code before the hole, suffix token, code behind it, middle token (the order "PSM"); what
fills the hole follows. Some families were trained on a second order too ("SPM", in the paper's second variant): prefix
token, suffix token, code behind the hole, middle token, code before it. While somebody types, only its end changes.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FimOrder = Literal["prefix-first", "suffix-first"]

# (before the prefix, before the suffix, before the hole)
FAMILIES = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
# Vocabularies with this token are Qwen2.5-Coder's. It fills a line far better suffix first, but does not end longer
# holes then (docs/results/infilling-order.md). Of the other families that has not been measured.
LINES_SUFFIX_FIRST = "<|fim_pad|>"
LONGEST_HOLE = 32  # tokens: a line or a few


class FimTokens(NamedTuple):
    """A vocabulary's ids of the three."""

    prefix: int
    suffix: int
    middle: int

    def prompt(
        self, before: Sequence[int], after: Sequence[int], order: FimOrder = "prefix-first"
    ) -> tuple[int, ...]:
        """The ids that ask for the hole between `before` and `after`."""
        if order == "suffix-first":
            return (self.prefix, self.suffix, *after, self.middle, *before)
        return (self.prefix, *before, self.suffix, *after, self.middle)


def fim_tokens(tokenizer: "Tokenizer") -> FimTokens | None:
    """Those of `tokenizer`, if its vocabulary has any."""
    for family in FAMILIES:
        ids = [token_id for name in family if (token_id := tokenizer.token_to_id(name)) is not None]
        if len(ids) == len(family):
            return FimTokens(*ids)
    return None


def line_order(tokenizer: "Tokenizer") -> FimOrder:
    """The order in which this family fills the rest of a line best, where that was measured; else prefix first."""
    return "prefix-first" if tokenizer.token_to_id(LINES_SUFFIX_FIRST) is None else "suffix-first"


def with_hole(row: Sequence[int], tokens: FimTokens, choice: random.Random) -> tuple[tuple[int, ...], int]:
    """`row` as a prompt for a hole in it, and what fills it; where that begins.

    Of the same length, so without its last three tokens.
    """
    row = row[:-3]
    start = choice.randrange(len(row))
    stop = min(len(row), start + choice.randint(1, LONGEST_HOLE))
    prompt = tokens.prompt(row[:start], row[stop:])
    return (*prompt, *row[start:stop]), len(prompt)
