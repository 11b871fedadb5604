"""What one server takes on. Beyond it a request is refused in words."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Defaults of `pangu-serve`'s flags of the same names."""

    max_queued: int = 128  # completions that may wait; more get 429
    max_choices: int = 1024  # completions of one request: prompts times best_of
    max_request_seconds: float = 600.0  # then a request ends with what it has
    max_stop_strings: int = 16  # editors send up to 13
    max_logprobs: int = 20  # alternatives reported a token; OpenAI's own bound is 5
