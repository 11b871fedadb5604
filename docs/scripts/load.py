"""What the load scripts beside this file share: a server process, prompts of a length, a timed stream."""

import json
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from pangu_convert.code_text import library_file, library_files

COMMAND = Path(sys.executable).with_name("pangu-serve")


class ServerProcess:
    """A running `pangu-serve`. Leaving the context sends SIGTERM and waits."""

    def __init__(self, artifact: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [COMMAND, artifact, "--port", "0", *options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        found = None
        while not found and (line := self.process.stdout.readline()):
            found = re.search(r"ready on (http://[^ /]+:\d+)", line)
        if not found:
            raise SystemExit(f"{artifact} did not start")
        self.address = found[1]

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait()


def code_prompts(tokenizer: Tokenizer, lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Texts of the standard library, one of each length in tokens of `tokenizer`; the same for the same seed."""
    chance = random.Random(seed)
    files = library_files()
    prompts: list[str] = []
    while len(prompts) < len(lengths):
        wanted = lengths[len(prompts)]
        text = library_file(chance.choice(files))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > wanted:
            begin = chance.randrange(len(ids) - wanted)
            prompts.append(tokenizer.decode(ids[begin : begin + wanted], skip_special_tokens=False))
    return prompts


@dataclass(slots=True)
class Stream:
    """One streamed completion as a client saw it. Times are seconds of `time.perf_counter`."""

    begun: float
    texts: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of each event with text
    ended: float = 0.0

    @property
    def ttft(self) -> float:
        """Seconds until the first text."""
        return self.times[0] - self.begun

    @property
    def gaps(self) -> list[float]:
        """Seconds between events with text."""
        return [after - before for before, after in pairwise(self.times)]

    def seconds_per_token(self, tokens: int) -> float:
        """Mean seconds between tokens, the first one's wait left out."""
        return (self.times[-1] - self.times[0]) / (tokens - 1)


async def stream_completion(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Stream:
    """POST `body` with stream=true to `url`/completions and time its events."""
    stream = Stream(begun=time.perf_counter())
    async with client.stream("POST", f"{url}/completions", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{url}: {answer.status_code} {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise SystemExit(f"{url}: {event['error']}")
            if event["choices"] and (text := event["choices"][0].get("text")):
                stream.texts.append(text)
                stream.times.append(time.perf_counter())
    stream.ended = time.perf_counter()
    return stream


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile (nearest rank)."""
    ordered = sorted(values)
    return {f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 6) for p in (50, 90, 99)}


def provenance(*packages: str) -> dict[str, Any]:
    """When, on what and with which versions this was measured."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": f"{names[0] if names else platform.machine()}, {len(names)} logical CPUs",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }
