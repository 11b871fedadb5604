"""How long requests take, through the endpoint, as a client sees it; one alone, and several at a time.

    TTFT   request sent to first token received
    ITL    time between two tokens; where an event brings k of them, each gets a k-th of the time since the last
    TPOT   (last token's time - first token's) / (tokens - 1) of a request: the paper's ms/token
    tokens/s = 1 / median TPOT

A token without text (an end token that is ignored) brings no event: tokens that come before the first text count with
its token as one, and a request that brings no text at all has no TPOT. A server that does not count the tokens in its
events must send one in each.

Every prompt begins at another place of some 400 kB of code, also in the next run against the same server: almost none
of an earlier prompt's keys and values can be reused. Every answer has the same length, whatever the model would say.
"""

import contextlib
import itertools
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import httpx
from tqdm import tqdm

from pangu_bench.rows import LatencyRow, RowFile
from pangu_convert.artifact import Artifact
from pangu_convert.code_text import evaluation_windows
from pangu_training.asking.endpoint import Endpoint, ServedError
from pangu_training.stage.checkpoint import TOKENIZER
from pangu_training.stage.vocabulary import read_tokenizer

PIECE_TOKENS = 128
STREAM = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


class Prompts:
    """Python code as token ids, of any length, each from a place drawn anew."""

    def __init__(self, tokenizer: Any) -> None:
        self._prefix: list[int] = tokenizer.encode("").ids
        text = evaluation_windows(tokenizer, num_windows=sys.maxsize, window_tokens=PIECE_TOKENS)
        self._code = [token_id for window in text.windows for token_id in window[len(self._prefix) :]]

    def prompt(self, num_tokens: int) -> list[int]:
        """A prompt of `num_tokens` tokens, what the tokenizer puts before a text included."""
        start, length = random.randrange(len(self._code)), len(self._code)
        code = (self._code[(start + offset) % length] for offset in itertools.count())
        return list(itertools.islice(itertools.chain(self._prefix, code), num_tokens))


def tokenizer_of(artifact: Artifact) -> Any:
    """The artifact's own."""
    return read_tokenizer(artifact.path / TOKENIZER)


class Encoding(NamedTuple):
    """What `EndpointTokenizer.encode` returns, as `tokenizers` names it."""

    ids: list[int]


class EndpointTokenizer:
    """The tokenizer behind `POST /tokenize`, which pangu-serve, vLLM and llama.cpp have, in place of an artifact's."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """As `tokenizers` does it.

        Raises:
            ServedError: there is no such path.
        """
        body = {
            "model": self._endpoint.model,
            **dict.fromkeys(("prompt", "content"), text),  # vLLM's name and llama.cpp's, here and below
            **dict.fromkeys(("add_special_tokens", "add_special"), add_special_tokens),
        }
        try:
            with httpx.Client(**self._endpoint.client_options()) as client:
                answer = client.post("/tokenize", json=body).raise_for_status().json()
            return Encoding(ids=[int(token_id) for token_id in answer["tokens"]])
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            raise ServedError(
                f"{self._endpoint.base_url} has no /tokenize, which makes prompts of a known length"
            ) from None


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
    for length in lengths:
        if all(rows.has(LatencyRow, 1, length, request) for request in range(repeats)):
            continue
        requests = range(-warmup, repeats)
        for request in tqdm(requests, desc=f"{length} tokens in", unit="request", disable=None):
            prompt = prompts.prompt(length)
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
    }
    arrivals: list[tuple[float, int]] = []
    uncounted = 0  # events with text and without a count: of one token each, or nobody knows when they came
    async with streamed(client, "/v1/completions", body, model=model) as events:
        async for at, event in events:
            usage = event.get("usage")
            if not usage and event["choices"][0]["text"]:
                uncounted += 1
            arrivals.append((at, usage["completion_tokens"] if usage else uncounted))
    came = max((tokens for _, tokens in arrivals), default=0)
    if came != new_tokens:
        raise ServedError(f"{model}: {new_tokens} tokens were asked for, {came} came: nothing to compare")
    if uncounted not in (0, came):
        raise ServedError(f"{model}: {came} tokens came in {uncounted} events that do not count them: when?")
    ttft_seconds, itl_seconds = gaps(arrivals)
    return LatencyRow(
        concurrency=concurrency,
        prompt_tokens=len(prompt),
        request=request,
        completion_tokens=new_tokens,
        ttft_seconds=ttft_seconds,
        itl_seconds=itl_seconds,
    )


@contextlib.asynccontextmanager
async def streamed(
    client: httpx.AsyncClient, path: str, body: Mapping[str, Any], *, model: str
) -> AsyncIterator[AsyncIterator[tuple[float, dict[str, Any]]]]:
    """The events of a streamed answer, each with the seconds since the request; whoever leaves drops the connection.

    Raises:
        ServedError: the server refuses, fails, or its events are not what the caller reads them as.
    """
    request = client.build_request("POST", path, json={**body, **STREAM})
    try:
        started = time.perf_counter()
        try:
            response = await client.send(request, stream=True)
        except httpx.RemoteProtocolError:  # llama-server closes a kept connection just when it is used again
            started = time.perf_counter()
            response = await client.send(request, stream=True)
        async with contextlib.aclosing(response):
            if not response.is_success:
                words = (await response.aread()).decode()[:200]
                raise ServedError(f"{model}: the server said {response.status_code}: {words}")
            yield _events(response, started, model)
    except httpx.HTTPError as error:
        raise ServedError(f"{model}: the server is gone: {error or type(error).__name__}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServedError(f"{model}: the server does not stream as was asked: {error!r}") from None


async def _events(
    response: httpx.Response, started: float, model: str
) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    async for line in response.aiter_lines():
        at = time.perf_counter() - started
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ServedError(f"{model}: the server failed: {event['error'].get('message')}")
            yield at, event


def gaps(arrivals: Sequence[tuple[float, int]]) -> tuple[float, tuple[float, ...]]:
    """TTFT and ITLs of (seconds since the request, tokens generated by then), in the order of arrival."""
    news = [(at, tokens) for at, tokens in arrivals if tokens]
    steps = [news[0], *(new for before, new in pairwise(news) if new[1] > before[1])]
    itl_seconds: list[float] = []
    for (before, had), (at, has) in pairwise(steps):
        itl_seconds += [(at - before) / (has - had)] * (has - had)
    return steps[0][0], tuple(itl_seconds)
