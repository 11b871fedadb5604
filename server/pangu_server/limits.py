"""What one request may ask for, and how many may wait."""

from argparse import ArgumentTypeError
from dataclasses import dataclass

from pangu_training.stage.options import counted, option


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
    max_body_bytes: int = counted("longest request body; 413 above", 8 << 20, metavar=None)
    # Editors send up to 18.
    max_stop_strings: int = counted(
        "stop strings of one request, and stop token ids", 64, least=0, metavar=None
    )
    max_logprobs: int = counted("likeliest tokens a request may ask for", 20, least=0, metavar=None)
    clamp_max_tokens: bool = option(
        "lower a max_tokens that the context has no room for, instead of a 400", False
    )
