"""What a server's own counters in /metrics say: of pangu-serve and vLLM, and of llama-server with `--metrics`.

They count every client's requests: figures from them hold while nobody else asks.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import httpx

# What we call it -> the samples of which it is the sum, by family of servers.
SAMPLES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "prompt_tokens": (
        ("vllm:prompt_tokens_total",),
        ("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
    ),
    "cached_tokens": (("vllm:prefix_cache_hits_total",), ("llamacpp:prompt_tokens_cached_total",)),
    "generated_tokens": (("vllm:generation_tokens_total",), ("llamacpp:tokens_predicted_total",)),
    "cancelled": (("pangu_requests_cancelled_total",),),
    "under_way": (
        ("vllm:num_requests_running", "vllm:num_requests_waiting"),
        ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    ),
}
SAMPLE = re.compile(r"^([\w:]+)(?:\{.*\})? ([^\s]+)", re.MULTILINE)
TYPE = re.compile(r"^# TYPE (\S+) ", re.MULTILINE)
SETTLE_SECONDS, POLL_SECONDS = 30.0, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Since the server's start, or between two readings; None: it does not count that."""

    prompt_tokens: int | None = None  # of started requests, those in the cache too
    cached_tokens: int | None = None  # of these
    generated_tokens: int | None = None
    cancelled: int | None = None
    under_way: int | None = None

    @classmethod
    def of(cls, exposition: str) -> Self:
        """Of a text in Prometheus' format."""
        # A family without a sample yet, whose labels are not known, counts 0.
        samples = dict.fromkeys(TYPE.findall(exposition), 0.0)
        for name, value in SAMPLE.findall(exposition):
            samples[name] = samples.get(name, 0.0) + float(value)
        found = {}
        for name, families in SAMPLES.items():
            known = [family for family in families if all(sample in samples for sample in family)]
            found[name] = round(sum(samples[sample] for sample in known[0])) if known else None
        return cls(**found)

    def since(self, before: Self) -> "Counts":
        """What was counted after `before` was read; not `under_way`."""
        moved = {
            name: None if now is None or then is None else now - then
            for name in SAMPLES
            if name != "under_way"
            for now, then in [(getattr(self, name), getattr(before, name))]
        }
        return Counts(**moved)


async def read_counts(client: httpx.AsyncClient) -> Counts:
    """What the server counts, once nothing is under way there, or after a while; nothing where it has no /metrics."""
    started = time.monotonic()
    while True:
        try:
            response = await client.get("/metrics")
        except httpx.HTTPError:
            return Counts()
        counts = Counts.of(response.text) if response.is_success else Counts()
        if not counts.under_way or time.monotonic() - started > SETTLE_SECONDS:
            return counts
        await asyncio.sleep(POLL_SECONDS)  # a request whose client is gone ends with its current step
