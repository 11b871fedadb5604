"""What HTTP costs: a streamed completion from `pangu-serve` compared with the same engine in this process.

    python docs/scripts/http_overhead.py ARTIFACT [--output FILE.json]

One client, greedy, `--max-tokens` tokens, the same prompt in token ids. The two take turns in one run, and the one that
begins changes every round. Both are timed as `pangu-bench` times requests. Prints medians and quartiles over the rounds
of TTFT and of a round's mean ITL, and the ratio of the medians, as JSON.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from pangu_bench.environment import environment
from pangu_bench.latency import Prompts, gaps, timed_request, tokenizer_of
from pangu_convert.artifact import read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions, SamplingOptions
from pangu_server.engine import Engine
from pangu_server.generation import GenerationOptions, Prompt
from pangu_server.metrics import Metrics
from pangu_training.asking.endpoint import Endpoint
from pangu_training.asking.server_process import ServerProcess
from pangu_training.stage.command import ServerOptions

REST_SECONDS = 0.3  # compute threads spin on for a while, on the other one's cores

Times = tuple[float, Sequence[float]]  # TTFT and ITLs of a round, in seconds


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
    tokenizer = tokenizer_of(artifact)
    engine = Engine(artifact, tokenizer, Metrics(artifact.manifest.name))
    backend = load_backend(artifact, LoadOptions(threads=arguments.threads))
    engine.load(backend)
    prompt = Prompts(tokenizer).prompt(arguments.prompt_tokens)
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(
            artifact.path, ServerOptions(threads=arguments.threads), log=Path(folder) / "log"
        ) as server,
    ):
        endpoint, _ = server.ready()
        rounds = asyncio.run(measure(engine, endpoint, prompt, arguments.max_tokens, arguments.rounds))
    engine.close()
    result = {
        "artifact": artifact.manifest.name,
        "backend": backend.info.name,
        "compute_type": backend.info.compute_type,
        "prompt_tokens": arguments.prompt_tokens,
        "max_tokens": arguments.max_tokens,
        **compare(rounds),
        "environment": environment(arguments.threads),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


async def measure(
    engine: Engine, endpoint: Endpoint, prompt: Sequence[int], max_tokens: int, rounds: int
) -> dict[str, list[Times]]:
    """Times of both sides; one round before the first warms up."""
    times: dict[str, list[Times]] = {"http": [], "in_process": []}
    async with httpx.AsyncClient(**endpoint.client_options()) as client:
        for number in range(rounds + 1):
            for side in sorted(times, reverse=number % 2 == 1):
                await asyncio.sleep(REST_SECONDS)
                if side == "http":
                    row = await timed_request(client, endpoint.model, prompt, max_tokens)
                    measured: Times = (row.ttft_seconds, row.itl_seconds)
                else:
                    measured = await in_process(engine, prompt, max_tokens)
                if number:
                    times[side].append(measured)
    return times


async def in_process(engine: Engine, prompt: Sequence[int], max_tokens: int) -> Times:
    """The completion by the engine alone."""
    sampling = SamplingOptions(max_tokens=max_tokens, temperature=0)
    options = GenerationOptions(sampling=sampling, ignore_eos=True, stream=True)
    arrivals: list[tuple[float, int]] = []
    started = time.perf_counter()
    generation = engine.submit([Prompt(prompt)], options)
    try:
        async for _ in generation:
            arrivals.append((time.perf_counter() - started, generation.completion_tokens))
    finally:
        generation.cancel()
    assert arrivals[-1][1] == max_tokens, "as many tokens as over HTTP"
    return gaps(arrivals)


def compare(times: Mapping[str, Sequence[Times]]) -> dict[str, Any]:
    """Medians and quartiles of both sides in milliseconds, and how they differ."""
    figures: dict[str, Any] = {"rounds": len(times["http"])}
    for side, measured in times.items():
        itl = [1000 * statistics.mean(itl_seconds) for _, itl_seconds in measured]
        ttft = [1000 * ttft_seconds for ttft_seconds, _ in measured]
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
