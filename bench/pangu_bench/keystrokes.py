"""What someone types into a file: all of it is drawn from a seed before anything is asked, the same for every server.

The file is real code of the standard library, from the beginning of a module, a class or a function on. What is typed
is what the code goes on with at the cursor, so the file grows by its own text and by completions that are accepted.

    | prefix            | typed, a few tokens a keystroke | suffix |      with the suffix, the cursor is 4 fifths down
    | prefix                     | typed                           |      without it, at the end of the file
"""

import random
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from pangu_bench.options import EditorOptions, UsageError
from pangu_convert.code_text import LIBRARY, evaluation_modules

Count = Callable[[str], int]  # a text's number of tokens

PART = re.compile(
    r"\s+|\w+|[^\w\s]"
)  # a word, a sign, a space: what an editor sees where a model sees tokens
PARTS = (2, 8)  # a keystroke
SUFFIX_SHARE = 0.2
CHARACTERS = 6  # more than a token of code has
BEGINNING = re.compile(r"^(?:class|def) ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keystroke:
    """What moves the cursor on, and what becomes of the completion that is asked for there.

    The first one types nothing: the file was opened.
    """

    typed: str
    pause_seconds: float | None  # after which the next keystroke comes; None: the completion is waited for
    accepts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Typing:
    """A file as it is opened, and all that is typed into it."""

    text: str  # where it is from
    prefix: str
    suffix: str
    keystrokes: tuple[Keystroke, ...]


@dataclass(slots=True)
class OpenFile:
    """The code before and behind the cursor."""

    prefix: str
    suffix: str

    def write(self, text: str) -> None:
        """Put `text`, typed or accepted, at the cursor, which moves behind it."""
        self.prefix += text


def typing(options: EditorOptions, file_tokens: int, count: Count, *, with_suffix: bool) -> Typing:
    """A file of `file_tokens` tokens as `count` counts them, and what is typed there.

    Raises:
        UsageError: no module is that long.
    """
    draw = random.Random(f"{options.seed} {file_tokens}")
    text, code = _code(draw, (file_tokens + options.keystrokes * PARTS[1]) * CHARACTERS)
    suffix_tokens = round(SUFFIX_SHARE * file_tokens) if with_suffix else 0
    cursor = _cut(code, file_tokens - suffix_tokens, count)
    parts = PART.finditer(code, cursor)
    typed = [
        "".join(next(parts).group() for _ in range(draw.randint(*PARTS))) for _ in range(options.keystrokes)
    ]
    behind = code[cursor + sum(map(len, typed)) :]
    numbers = range(1, options.keystrokes + 1)
    hasty = set(draw.sample(numbers, options.num_cancelled))
    waiting = [number for number in numbers if number not in hasty]
    accepting = set(draw.sample(waiting, options.num_accepted))
    least, most = options.pause_ms
    return Typing(
        text=text,
        prefix=code[:cursor],
        suffix=behind[: _cut(behind, suffix_tokens, count)],
        keystrokes=tuple(
            Keystroke(
                typed=new,
                pause_seconds=draw.uniform(least, most) / 1000 if number in hasty else None,
                accepts=number in accepting,
            )
            for number, new in enumerate(["", *typed])
        ),
    )


def _code(draw: random.Random, characters: int) -> tuple[str, str]:
    """Where it is from, and code of at least that many characters."""
    places = [
        (name, text[start:])
        for name, text in evaluation_modules().items()
        for start in (0, *(match.start() for match in BEGINNING.finditer(text)))
        if len(text) - start >= characters
    ]
    if not places:
        raise UsageError(
            f"no module of the {LIBRARY} has {characters} characters: take a shorter file or fewer --keystrokes"
        )
    name, code = draw.choice(places)
    return f"{LIBRARY}, {name}", code


def _cut(code: str, num_tokens: int, count: Count) -> int:
    """How many characters the first `num_tokens` tokens have."""
    longest = min(len(code), CHARACTERS * num_tokens)
    return bisect_left(range(longest), num_tokens, key=lambda length: count(code[:length]))
