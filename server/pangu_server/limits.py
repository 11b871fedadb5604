"""What one request may ask for, and how many may wait."""

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass

from pangu_training.stage.options import counted, option


def byte_size(text: str) -> int:
    """An argument's type: a size in bytes, or with a unit of 1000s (`2GB`) or 1024s (`512MiB`)."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is not a size, such as 2GB or 512MiB")
    number, unit, binary = found.groups()
    power = 1 + "kmgt".index(unit.lower()) if unit else 0
    size = round(float(number) * (1024.0 if binary else 1000.0) ** power)
    if size < 1:
        raise ArgumentTypeError(f"{text!r} is not a size: it must hold something")
    return size


def seconds(text: str) -> float:
    """An argument's type: a span of time."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text} is not a number of seconds")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Beyond these a request is refused, or ended."""

    max_queued: int = counted("requests that may wait; more get 429", 128, least=0, metavar=None)
    max_request_seconds: float = option("a request ends then with what it has", 600, type=seconds)
    # Prompts times n, or times best_of.
    max_choices: int = counted(
        "completions of one request: prompts times n", 1024, flag="--max-prompts", metavar=None
    )
    max_body_bytes: int = counted("longest request body; 413 above", 4 << 20, metavar=None)
    # Together those in flight may hold `BUDGETS` times as much.
    max_request_bytes: int = option(
        "memory that one request may need for its tokens and its answer, such as 256MiB",
        256 << 20,
        flag="--max-request-memory",
        type=byte_size,
        metavar="SIZE",
    )
    max_connections: int = counted("open connections; the one idle longest gives way", 1000, metavar=None)
    # Editors send up to 18.
    max_stop_strings: int = counted(
        "stop strings of one request, and stop token ids", 64, least=0, metavar=None
    )
    max_logprobs: int = counted("likeliest tokens a request may ask for", 20, least=0, metavar=None)
    clamp_max_tokens: bool = option(
        "lower a max_tokens that the context has no room for, instead of a 400", False
    )
    sse_keep_alive: float = option(
        "seconds of silence after which a stream sends a comment, so that proxies keep it; 0: never",
        15,
        type=seconds,
    )
