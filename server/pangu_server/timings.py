"""When a completion arrived, started and got its tokens: what metrics and the request's log line are made of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The moments of one completion, in seconds of `time.perf_counter`, and its tokens up to now.

    A duration is None until its end has come. Names of durations are vLLM's: queue, prefill, decode, inference.
    """

    arrived: float
    prompt_tokens: int
    started: float | None = None  # it left the queue
    first_token: float | None = None
    last_token: float | None = None
    completion_tokens: int = 0

    @property
    def queue_seconds(self) -> float | None:
        """Arrival to leaving the queue."""
        return _between(self.arrived, self.started)

    @property
    def ttft_seconds(self) -> float | None:
        """Arrival to the first token."""
        return _between(self.arrived, self.first_token)

    @property
    def prefill_seconds(self) -> float | None:
        """Leaving the queue to the first token."""
        return _between(self.started, self.first_token)

    @property
    def decode_seconds(self) -> float | None:
        """First token to the last."""
        return _between(self.first_token, self.last_token)

    @property
    def inference_seconds(self) -> float | None:
        """Leaving the queue to the last token."""
        return _between(self.started, self.last_token)

    @property
    def end_to_end_seconds(self) -> float:
        """Arrival to the last token; 0 where none was asked for."""
        return _between(self.arrived, self.last_token) or 0.0

    @property
    def time_per_token_seconds(self) -> float | None:
        """Mean time between two tokens: (last - first) / (tokens - 1)."""
        decode = self.decode_seconds
        return None if decode is None or self.completion_tokens < 2 else decode / (self.completion_tokens - 1)


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
