"""A listener that keeps the tokens, and greedy decoding through a backend with it."""

import threading
from collections.abc import Sequence

from pangu_server.backends.seam import Backend, SamplingOptions, TokenLogprobs


class Collector:
    """Keeps what the backend tells it."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs | None] = []
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.error: Exception | None = None
        self.ended = threading.Event()

    def on_start(self) -> None:
        pass

    def on_prompt(self, logprobs: Sequence[TokenLogprobs | None]) -> None:
        self.prompt_logprobs += logprobs

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        self.tokens.append(token_id)
        self.logprobs.append(logprobs)
        return False

    def on_end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()


def greedy(
    backend: Backend, prompt_ids: Sequence[int], num_tokens: int, end_token_ids: Sequence[int]
) -> list[int]:
    """The backend's greedy tokens, an end token included."""
    collector = Collector()
    options = SamplingOptions(max_tokens=num_tokens, temperature=0, end_token_ids=tuple(end_token_ids))
    backend.submit(prompt_ids, options, collector)
    assert collector.ended.wait(120)
    assert collector.error is None
    return collector.tokens
