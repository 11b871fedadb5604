"""A text file that tells whether it is still as it was written: its last line has the sha256 of all before it."""

import hashlib
import re
from pathlib import Path

SIGNATURE = re.compile(r"<!-- Written by (pangu-[\w -]+); sha256 of the text above: ([0-9a-f]{64}) -->\n?")


def signed(text: str, command: str) -> str:
    """`text` with a line at its end that says which command wrote it. Markdown does not show that line."""
    text = f"{text.rstrip()}\n\n"
    return f"{text}<!-- Written by {command}; sha256 of the text above: {_sha256(text)} -->\n"


def is_as_written(path: Path) -> bool:
    """Whether the file has such a line, and nobody changed what is above it."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    start = text.rfind("<!-- Written by ")
    found = SIGNATURE.fullmatch(text[start:]) if start >= 0 else None
    return found is not None and found[2] == _sha256(text[:start])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
