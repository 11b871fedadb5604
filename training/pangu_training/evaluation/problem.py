"""A problem with its tests, and a suite of problems: what every benchmark's file becomes."""

import re
from dataclasses import dataclass
from typing import Any

from pangu_training.stage.errors import PanguError


class SuiteError(PanguError):
    """A benchmark's file is missing or is not what it was given as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTests:
    """Tests as source: defines `check(candidate)`, which raises unless the candidate is right."""

    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTests:
    """Tests as argument lists: right is what the canonical program returns for each.

    `atol` is the tolerance for numbers that are compared. HumanEval/32 (`find_zero`) has many right answers: its
    result x is right when the canonical program's `poly(*arguments, x)` is within `atol` of zero.
    """

    base_inputs: tuple[list[Any], ...]
    plus_inputs: tuple[list[Any], ...]
    atol: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem. What a model sees is made of `prompt` (and `suffix`) by `styles.py`.

    `prompt` is source that ends where the function's body has to begin, or at the hole before `suffix`.
    `entry_point` is an expression: `has_close_elements`, `Solution().twoSum`. `setup` runs before the program and is
    shown to no model. `canonical_program` is the whole right program, `setup` included, empty where none is known.
    A problem that is stated in `words` has no source for a prompt, and asks for the whole program.
    """

    suite: str
    task_id: str
    prompt: str
    entry_point: str
    canonical_program: str
    tests: CheckTests | InputTests | None
    suffix: str | None = None
    setup: str = ""
    difficulty: str | None = None
    question_id: int | None = None  # LeetCode's own number
    words: str | None = None

    @property
    def target(self) -> str:
        """The top-level name that a program must define: `has_close_elements`, `Solution`."""
        return re.split(r"[.(]", self.entry_point, maxsplit=1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A benchmark: its problems, and the hash of the file they came from."""

    name: str
    problems: tuple[Problem, ...]
    sha256: str
    no_score: str | None = None  # why its answers cannot be judged as its authors did

    @property
    def runnable(self) -> bool:
        """Whether answers to it can be scored."""
        return self.no_score is None
