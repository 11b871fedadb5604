"""How long requests take, through the endpoint, as a client sees it; one alone, and several at a time.

    TTFT   request sent to first token received
    ITL    time between two tokens; where an event brings k of them, each gets a k-th of the time since the last
    TPOT   (last token's time - first token's) / (tokens - 1) of a request: the paper's ms/token
    tokens/s = 1 / median TPOT

A token without text (an end token that is ignored) brings no event: tokens that come before the first text count with
its token as one, and a request that brings no text at all has no TPOT.

Every prompt begins differently, so that no server can reuse an earlier one's keys and values; every answer has the
same length, whatever the model would say.
"""

import itertools
import json
import time
from collections.abc import Sequence
from itertools import pairwise

import httpx
from tokenizers import Tokenizer
from tqdm import tqdm

from pangu_bench.rows import LatencyRow, RowFile
from pangu_convert.artifact import Artifact
from pangu_convert.code_text import evaluation_windows
from pangu_training.checkpoint import TOKENIZER
from pangu_training.endpoint import ServedError

PIECE_TOKENS = 128


class Prompts:
    """Python code as token ids, of any length; the first `count` prompts begin with different code."""

    def __init__(self, artifact: Artifact, count: int) -> None:
        tokenizer = Tokenizer.from_file(str(artifact.path / TOKENIZER))
        text = evaluation_windows(tokenizer, num_windows=count, window_tokens=PIECE_TOKENS)
        self._pieces = text.windows

    def prompt(self, number: int, num_tokens: int) -> list[int]:
        """The prompt `number`, of `num_tokens` tokens."""
        start = number % len(self._pieces)
        pieces = itertools.cycle((*self._pieces[start:], *self._pieces[:start]))
        return list(itertools.islice(itertools.chain.from_iterable(pieces), num_tokens))


async def measure_latency(
    rows: RowFile,
    client: httpx.AsyncClient,
    model: str,
    prompts: Prompts,
    *,
    lengths: Sequence[int],
    new_tokens: int,
    warmup: int,
    repeats: int,
) -> None:
    """Append the rows that are missing: `repeats` requests at each prompt length, after `warmup` that do not count."""
    numbers = itertools.count()
    for length in lengths:
        if all(rows.has(LatencyRow, 1, length, request) for request in range(repeats)):
            continue
        requests = range(-warmup, repeats)
        for request in tqdm(requests, desc=f"{length} tokens in", unit="request", disable=None):
            prompt = prompts.prompt(next(numbers), length)
            row = await timed_request(client, model, prompt, new_tokens, request=request)
            if request >= 0 and not rows.has(LatencyRow, 1, length, request):
                rows.append(row)


async def timed_request(
    client: httpx.AsyncClient,
    model: str,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    request: int = 0,
    concurrency: int = 1,
) -> LatencyRow:
    """A greedy completion of exactly `new_tokens` tokens; `request` and `concurrency` only name the row.

    Raises:
        ServedError: the server refuses, fails, or sends another number of tokens.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    arrivals: list[tuple[float, int]] = []
    started = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if not response.is_success:
                words = (await response.aread()).decode()[:200]
                raise ServedError(f"{model}: the server said {response.status_code}: {words}")
            async for line in response.aiter_lines():
                at = time.perf_counter() - started
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise ServedError(f"{model}: the server failed: {event['error'].get('message')}")
                    arrivals.append((at, event["usage"]["completion_tokens"]))
    except httpx.HTTPError as error:
        raise ServedError(f"{model}: the server is gone: {error or type(error).__name__}") from None
    came = max((tokens for _, tokens in arrivals), default=0)
    if came != new_tokens:
        raise ServedError(f"{model}: {new_tokens} tokens were asked for, {came} came: nothing to compare")
    ttft_seconds, itl_seconds = gaps(arrivals)
    return LatencyRow(
        concurrency=concurrency,
        prompt_tokens=len(prompt),
        request=request,
        completion_tokens=new_tokens,
        ttft_seconds=ttft_seconds,
        itl_seconds=itl_seconds,
    )


def gaps(arrivals: Sequence[tuple[float, int]]) -> tuple[float, tuple[float, ...]]:
    """TTFT and ITLs of (seconds since the request, tokens generated by then), in the order of arrival."""
    news = [(at, tokens) for at, tokens in arrivals if tokens]
    steps = [news[0], *(new for before, new in pairwise(news) if new[1] > before[1])]
    itl_seconds: list[float] = []
    for (before, had), (at, has) in pairwise(steps):
        itl_seconds += [(at - before) / (has - had)] * (has - had)
    return steps[0][0], tuple(itl_seconds)
