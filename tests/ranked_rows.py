"""Ranked rows that a tiny model learns in seconds: the chosen answers return, the rejected ones print."""

import random
from pathlib import Path

from pangu_training.ranked import Answer, RankedRow, write_ranked

NAMES = ("total", "mean", "largest", "smallest", "length", "first", "last", "product")


def ranked_rows(count: int, *, seed: int = 0) -> list[RankedRow]:
    """`count` rows, their answers of different lengths."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        name, extra = rng.choice(NAMES), rng.randrange(100)
        body = f"    value = {name}(items)\n" * rng.randint(0, 2)
        rows.append(
            RankedRow(
                id=f"{seed}/{number}",
                prompt=f"The {name} of a list, plus {extra}.",
                chosen=Answer(
                    text=f"def f(items):\n{body}    return {extra}\n",
                    score=rng.choice([1.0, -0.2]),
                    source="teacher",
                ),
                rejected=Answer(
                    text=f"def f(items):\n{body}    print({extra})\n" * rng.randint(1, 2),
                    score=rng.choice([-0.3, -0.6, -1.0]),
                    source="student",
                ),
            )
        )
    return rows


def write_rows(path: Path, count: int, *, seed: int = 0) -> Path:
    """The same in a file."""
    write_ranked(path, ranked_rows(count, seed=seed))
    return path
