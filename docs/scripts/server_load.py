"""Throughput and latency of any OpenAI-style completion server under clients that never pause.

    python docs/scripts/server_load.py LABEL --url http://127.0.0.1:8000/v1 --tokenizer ARTIFACT --output FILE.jsonl

Each of `--clients` clients sends its next request when its last one has ended (closed loop). Prompts are pieces of
Python's standard library, their lengths log-uniform between 16 and 512 tokens, the same for every server and repeat.
All streams; tokens are counted by tokenizing the answers again, so every server is measured by the same count. TTFT
is the time to the first event with text, ITL the time between events with text, TPOT (last - first text) divided by
(tokens - 1).

`--extra` holds fields that not every server knows: {"ignore_eos": true} makes lengths equal; llama-cpp-python wants
{"logit_bias": {"<end token id>": -100}} instead, and transformers refuses what it does not know: {}.

The clients run in one process of their own on the same cores as the server: a share of the machine that is the same
for all. Prints and appends a JSON line for each repeat, then one with the medians.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
from load import Stream, code_prompts, percentiles, provenance, stream_completion
from tokenizers import Tokenizer

SHORTEST, LONGEST = 16, 512


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("label", help="what is measured, with its quantization")
    parser.add_argument("--url", required=True, help="base URL, ending in /v1")
    parser.add_argument("--model", help="default: the first of /models")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--extra", type=json.loads, default={"ignore_eos": True}, help="JSON, more fields")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64, help="of each repeat")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, help="JSONL, appended to")
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json"))
    chance = random.Random(0)
    bounds = math.log(SHORTEST), math.log(LONGEST)
    lengths = [round(math.exp(chance.uniform(*bounds))) for _ in range(arguments.requests)]
    prompts = code_prompts(tokenizer, lengths)
    model = arguments.model or httpx.get(f"{arguments.url}/models").json()["data"][0]["id"]
    body = {"model": model, "max_tokens": arguments.max_tokens, "temperature": 0, **arguments.extra}
    common = {
        "label": arguments.label,
        "clients": arguments.clients,
        "client": "httpx, one process on the server's cores",
        "requests": arguments.requests,
        "prompt_tokens": {"shortest": min(lengths), "longest": max(lengths), "sum": sum(lengths)},
        "max_tokens": arguments.max_tokens,
        "extra": arguments.extra,
        **provenance("httpx", "tokenizers"),
    }
    asyncio.run(run(arguments.url, body, prompts[: arguments.clients], arguments.clients))  # warm-up
    rows = []
    for repeat in range(arguments.repeats):
        begun = time.perf_counter()
        streams = asyncio.run(run(arguments.url, body, prompts, arguments.clients))
        row = summary(streams, time.perf_counter() - begun, tokenizer)
        rows.append(row)
        append(arguments.output, {**common, "repeat": repeat, **row})
    append(arguments.output, {**common, "repeat": "median", "repeats": len(rows), **medians(rows)})


async def run(url: str, body: dict[str, Any], prompts: list[str], clients: int) -> list[Stream]:
    """All prompts through `clients` clients."""
    waiting = iter(prompts)
    streams: list[Stream] = []
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:

        async def work() -> None:
            for prompt in waiting:
                streams.append(await stream_completion(client, url, {**body, "prompt": prompt}))

        await asyncio.gather(*(work() for _ in range(clients)))
    return streams


def summary(streams: list[Stream], seconds: float, tokenizer: Tokenizer) -> dict[str, Any]:
    """One repeat's figures. Times in seconds."""
    heard = [stream for stream in streams if stream.times]
    counts = [len(tokenizer.encode("".join(s.texts), add_special_tokens=False).ids) for s in heard]
    tpot = [s.seconds_per_token(n) for s, n in zip(heard, counts, strict=True) if n > 1]
    return {
        "seconds": round(seconds, 3),
        "completion_tokens": sum(counts),
        "tokens_per_second": round(sum(counts) / seconds, 2),
        "requests_per_second": round(len(streams) / seconds, 3),
        "empty_answers": len(streams) - len(heard),
        "ttft": percentiles([s.ttft for s in heard]),
        "itl": percentiles([gap for s in heard for gap in s.gaps]),
        "tpot": percentiles(tpot),
        "latency": percentiles([s.ended - s.begun for s in streams]),
    }


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the repeats, and the spread of the throughput."""
    spread = [row["tokens_per_second"] for row in rows]
    middle: dict[str, Any] = {"tokens_per_second_range": [min(spread), max(spread)]}
    for name, value in rows[0].items():
        if isinstance(value, dict):
            middle[name] = {p: statistics.median(row[name][p] for row in rows) for p in value}
        else:
            middle[name] = statistics.median(row[name] for row in rows)
    return middle


def append(path: Path, row: dict[str, Any]) -> None:
    """One more line, here and in the file."""
    line = json.dumps(row)
    print(line, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
