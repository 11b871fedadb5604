"""What HTTP costs: a streamed completion from `pangu-serve` beside the same engine driven in this process.

    python docs/scripts/http_overhead.py ARTIFACT [--output FILE.json]

One client, greedy, `--max-tokens` tokens, the same prompt. The two take turns in one run, and the one that begins
changes every round. ITL is (last - first text) / (tokens - 1) of a round, TTFT the time to the first text, tokenizing
included. Prints medians, quartiles and the ratio of the medians as JSON.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
from load import ServerProcess, Stream, code_prompts, provenance, stream_completion
from tokenizers import Tokenizer

from pangu_convert.artifact import read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions, SamplingOptions
from pangu_server.engine import Engine, GenerationOptions, Prompt
from pangu_server.metrics import Metrics

REST_SECONDS = 0.3  # compute threads spin on for a while, on the other one's cores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    artifact = read_artifact(arguments.artifact)
    tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))
    engine = Engine(artifact, tokenizer, Metrics(artifact.manifest.name))
    engine.load(load_backend(artifact, LoadOptions(threads=arguments.threads)))
    assert engine.backend is not None
    [prompt] = code_prompts(tokenizer, [arguments.prompt_tokens])
    with ServerProcess(arguments.artifact, "--threads", str(arguments.threads)) as server:
        rounds = asyncio.run(
            measure(engine, f"{server.address}/v1", prompt, arguments.max_tokens, arguments.rounds)
        )
    info = engine.backend.info
    engine.close()
    result = {
        "artifact": artifact.manifest.name,
        "backend": info.name,
        "compute_type": info.compute_type,
        "threads": arguments.threads,
        "prompt_tokens": arguments.prompt_tokens,
        "max_tokens": arguments.max_tokens,
        **compare(rounds, arguments.max_tokens),
        **provenance("ctranslate2", "fastapi", "httpx", "transformers", "uvicorn"),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


async def measure(
    engine: Engine, url: str, prompt: str, max_tokens: int, rounds: int
) -> dict[str, list[Stream]]:
    """Streams of both sides; one round before the first warms up."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    streams: dict[str, list[Stream]] = {"http": [], "in_process": []}
    async with httpx.AsyncClient(timeout=None) as client:
        for number in range(rounds + 1):
            for side in sorted(streams, reverse=number % 2 == 1):
                await asyncio.sleep(REST_SECONDS)
                if side == "http":
                    stream = await stream_completion(client, url, body)
                else:
                    stream = await in_process(engine, prompt, max_tokens)
                if number:
                    streams[side].append(stream)
    texts = {"".join(stream.texts) for side in streams.values() for stream in side}
    assert len(texts) == 1, "both sides say the same every time"
    return streams


async def in_process(engine: Engine, prompt: str, max_tokens: int) -> Stream:
    """The completion by the engine alone."""
    sampling = SamplingOptions(max_tokens=max_tokens, temperature=0)
    stream = Stream(begun=time.perf_counter())
    ids = engine.encoder.prompt(prompt)
    generation = engine.submit(
        [Prompt(ids)], GenerationOptions(sampling=sampling, ignore_eos=True, stream=True)
    )
    try:
        async for deltas in generation:
            if text := "".join(delta.text for delta in deltas):
                stream.texts.append(text)
                stream.times.append(time.perf_counter())
    finally:
        generation.cancel()
    stream.ended = time.perf_counter()
    return stream


def compare(streams: dict[str, list[Stream]], tokens: int) -> dict[str, Any]:
    """Medians and quartiles of both sides in milliseconds, and how they differ."""
    figures: dict[str, Any] = {"rounds": len(streams["http"])}
    for side, measured in streams.items():
        itl = [1000 * stream.seconds_per_token(tokens) for stream in measured]
        ttft = [1000 * stream.ttft for stream in measured]
        figures[side] = {
            name: dict(zip(("q1", "median", "q3"), statistics.quantiles(values), strict=True))
            for name, values in (("itl_ms", itl), ("ttft_ms", ttft))
        }
    http, alone = figures["http"], figures["in_process"]
    figures["itl_ratio"] = http["itl_ms"]["median"] / alone["itl_ms"]["median"]
    figures["added_ttft_ms"] = http["ttft_ms"]["median"] - alone["ttft_ms"]["median"]
    return figures


if __name__ == "__main__":
    main()
