"""Python source that is there on every machine: the standard library's. Some of it is kept for evaluation.

Calibration draws from `library_files`, which leaves out the modules that `evaluation_windows` reads.
"""

import hashlib
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_training.stage.errors import PanguError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NOT_LIBRARY_CODE = {"test", "tests", "idlelib", "site-packages", "dist-packages"}
EVALUATION_MODULES = (
    "heapq.py",
    "textwrap.py",
    "shlex.py",
    "fractions.py",
    "csv.py",
    "calendar.py",
    "difflib.py",
    "statistics.py",
    "zipfile.py",
    "configparser.py",
)
LIBRARY = f"Python {platform.python_version()} standard library"


class NoLibrarySource(PanguError):
    """This Python is installed without the source of its library."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationText:
    """Windows of token ids and where they come from."""

    source: str
    windows: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows."""
        return sum(map(len, self.windows))

    @property
    def sha256(self) -> str:
        """Hash of the token ids."""
        return hashlib.sha256(repr(self.windows).encode()).hexdigest()


def library_files() -> list[Path]:
    """The standard library's Python files, sorted; without tests, IDLE and what evaluation reads."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {
        path.relative_to(root): path for path in root.rglob("*.py") if not NOT_LIBRARY_CODE & {*path.parts}
    }
    chosen = [files[name] for name in sorted(files) if str(name) not in EVALUATION_MODULES]
    if not chosen:
        raise NoLibrarySource(f"this Python carries no library source under {root}: name a file of your own")
    return chosen


def library_file(path: Path) -> str:
    """The text of a source file; a few are written in other encodings than UTF-8."""
    return path.read_text(encoding="utf-8", errors="ignore")


def evaluation_modules() -> dict[str, str]:
    """The evaluation modules' text, by name.

    Raises:
        NoLibrarySource: the modules are not there.
    """
    root = Path(sysconfig.get_path("stdlib"))
    texts = {name: library_file(root / name) for name in EVALUATION_MODULES if (root / name).is_file()}
    if not texts:
        raise NoLibrarySource(f"this Python carries no library source under {root}: install it to go on")
    return texts


def evaluation_windows(tokenizer: "Tokenizer", *, num_windows: int, window_tokens: int) -> EvaluationText:
    """`evaluation_pieces`, each behind what the tokenizer puts before a text; raises as it does."""
    prefix: list[int] = tokenizer.encode("").ids
    pieces = evaluation_pieces(tokenizer, num_pieces=num_windows, piece_tokens=window_tokens)
    return EvaluationText(source=LIBRARY, windows=tuple((*prefix, *piece) for piece in pieces))


def evaluation_pieces(tokenizer: "Tokenizer", *, num_pieces: int, piece_tokens: int) -> list[tuple[int, ...]]:
    """The first piece of each evaluation module, then the second of each, up to `num_pieces`.

    The text is fixed for a Python version.

    Raises:
        NoLibrarySource: the modules are not there, or shorter than a piece.
    """
    texts = evaluation_modules().values()
    cut = [_cut(tokenizer.encode(text, add_special_tokens=False).ids, piece_tokens) for text in texts]
    pieces = [
        of_module[turn]
        for turn in range(max(map(len, cut), default=0))
        for of_module in cut
        if turn < len(of_module)
    ]
    if not pieces:
        raise NoLibrarySource(f"no library module has {piece_tokens} tokens: ask for shorter windows")
    return pieces[:num_pieces]


def _cut(ids: Sequence[int], length: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + length]) for start in range(0, len(ids) - length + 1, length)]
