"""What one request may ask for, and how many may wait."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Beyond these a request is refused, or ended."""

    max_queued: int = 128  # requests that wait; more are refused with 429
    max_choices: int = 1024  # completions of one request: prompts times n (or best_of)
    max_request_seconds: float = 600  # from arrival; then the request ends with what it has
    max_body_bytes: int = 8 << 20
    max_stop_strings: int = 16  # editors send up to 13
    max_logprobs: int = 20  # likeliest tokens that are reported at each position
