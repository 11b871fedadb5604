"""Ranked rows that a tiny model learns in seconds: the chosen answers return, the rejected ones print.

Constant ones, to learn to solve problems: every answer is the same, and right for every problem.
"""

import random
from dataclasses import replace
from pathlib import Path

from pangu_training.data.ranked import Answer, RankedRow, write_ranked
from pangu_training.evaluation.words import write_problems

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


def constant_rows(count: int) -> list[RankedRow]:
    """`count` rows that all choose `f` returning N, which is 7 by the problems' setup."""
    rows = ranked_rows(count)
    return [replace(row, chosen=replace(row.chosen, text="def f(items):\n    return N\n")) for row in rows]


def constant_problems(path: Path, count: int, **changes: str) -> Path:
    """Problems of other rows' words that the constant answer solves, then one without tests."""
    tests = {
        "setup": "N = 7",
        "entry_point": "f",
        "tests": "def check(candidate):\n    assert candidate([1]) == 7\n",
    }
    problems = [
        {"id": f"own/{number}", "prompt": row.prompt, **tests, **changes}
        for number, row in enumerate(ranked_rows(count, seed=2))
    ]
    write_problems(path, [*problems, {"id": "untested", "prompt": "Anything."}])
    return path
