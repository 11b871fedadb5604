"""Ill-behaved clients for a long time: does `pangu-serve` keep its promises, and give everything back?

    python docs/scripts/soak.py ARTIFACT [--engine torch] [--minutes 10] [--clients 32] [--output FILE.json]

The clients read streams to the end, leave in the middle or while they wait, read slowly, send bodies that are wrong,
and use every endpoint. Then:

* no answer was a 5xx but 503; every stream that began ended with `[DONE]` (llama.cpp's form: `"stop": true`) or an
  error event, unless the client left;
* no request runs or waits, and the process has no more threads and file descriptors than after the warm-up;
* resident memory did not grow by more than `--max-growth` from the second to the last quarter of the time;
* SIGTERM among as many running streams: each one that was admitted ends whole, and the exit code is 0.

Prints the verdict as JSON; exit code 1 when something failed.
"""

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from clients import Clients
from tokenizers import Tokenizer

from pangu_bench.environment import environment
from pangu_bench.latency import Prompts

COMMAND = Path(sys.executable).with_name("pangu-serve")
WARM_UP_SECONDS = 60  # until each client has done most things: some threads and buffers are made at first use
FILL_TOKENS = 2000  # of a prompt that fills the attention cache
SETTLE_SECONDS = 30  # for connections that uvicorn keeps alive, and generations that were left


class Process:
    """What /proc tells of a process."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def resident_bytes(self) -> int:
        """Resident memory."""
        return int((self._folder / "statm").read_text().split()[1]) * 4096

    def held(self) -> dict[str, int]:
        """Threads and file descriptors."""
        return {
            "threads": len(list((self._folder / "task").iterdir())),
            "file_descriptors": len(list((self._folder / "fd").iterdir())),
        }


async def soak(
    server: subprocess.Popen[str],
    address: str,
    prompts: list[str],
    fill: list[str],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Run it all; `faults` of the result says what went wrong."""
    process = Process(server.pid)
    clients = Clients(address, prompts, arguments.max_tokens)
    for prompt in fill:
        body = {"prompt": prompt, "max_tokens": 1}
        (await clients.client.post("/v1/completions", json=body)).raise_for_status()
    await run_clients(clients, WARM_UP_SECONDS, arguments.clients)
    await settle(clients)
    start = process.held()

    samples: list[tuple[float, int]] = []
    begun = time.monotonic()

    async def sample() -> None:
        while True:
            samples.append((time.monotonic() - begun, process.resident_bytes()))
            await asyncio.sleep(1)

    sampler = asyncio.create_task(sample())
    await run_clients(clients, 60 * arguments.minutes, arguments.clients)
    sampler.cancel()
    left = await settle(clients)
    end = process.held()
    clients.faults += [f"{name} is {value} afterwards" for name, value in left.items() if value]
    clients.faults += [
        f"{end[what]} {what}, {start[what]} before" for what in start if end[what] > start[what]
    ]

    quarter = max(1, len(samples) // 4)
    early, late = (
        statistics.median(size for _, size in part)
        for part in (samples[quarter : 2 * quarter], samples[-quarter:])
    )
    if late / early - 1 > arguments.max_growth:
        clients.faults.append(f"resident memory grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB")
    second_half = samples[len(samples) // 2 :]
    slope = statistics.linear_regression(*zip(*second_half, strict=True)).slope if len(second_half) > 2 else 0
    ends = await stop_among_streams(server, clients, arguments.clients)
    return {
        "clients": arguments.clients,
        "minutes": arguments.minutes,
        "actions": dict(clients.actions),
        "statuses": dict(sorted(clients.statuses.items())),
        "stream_ends": dict(clients.ends),
        "held_before": start,
        "held_after": end,
        "resident_mb": {"early": early / 1e6, "late": late / 1e6, "slope_per_minute": slope * 60 / 1e6},
        "sigterm_streams": dict(ends),
        "exit_code": server.returncode,
        "faults": dict(Counter(clients.faults)),
    }


async def run_clients(clients: Clients, seconds: float, number: int) -> None:
    """`number` clients for `seconds`, and until their last requests are done."""
    deadline = time.monotonic() + seconds
    await asyncio.gather(*(clients.client_until(deadline) for _ in range(number)))


async def settle(clients: Clients) -> dict[str, float]:
    """Close our connections and wait for the server to be idle; the gauges that are not 0."""
    address, timeout = clients.client.base_url, clients.client.timeout
    await clients.client.aclose()
    await asyncio.sleep(7)  # uvicorn keeps a connection for five seconds
    clients.client = httpx.AsyncClient(
        base_url=address,
        timeout=timeout,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        left = {name: await clients.gauge(name) for name in names}
        if not any(left.values()) or time.monotonic() > deadline:
            await asyncio.sleep(1)
            return left
        await asyncio.sleep(0.5)


async def stop_among_streams(server: subprocess.Popen[str], clients: Clients, number: int) -> Counter[str]:
    """SIGTERM as soon as streams have begun; how they ended. Those that had begun must end whole."""
    admitted = 0
    half = asyncio.Event()

    def begun() -> None:
        nonlocal admitted
        admitted += 1
        if admitted >= number // 2:
            half.set()

    async def one() -> str:
        body = clients.body(max_tokens=clients.max_tokens)
        mine = False

        def mark() -> None:
            nonlocal mine
            mine = True
            begun()

        try:
            end = await clients.stream("/v1/completions", body, begun=mark)
        except httpx.HTTPError as error:
            end = "broken" if mine else f"refused ({type(error).__name__})"
        if mine and end != "done":
            clients.faults.append(f"SIGTERM: an admitted stream ended {end}")
        return end

    tasks = [asyncio.create_task(one()) for _ in range(number)]
    await asyncio.wait_for(half.wait(), 120)
    server.send_signal(signal.SIGTERM)
    ends = Counter(await asyncio.gather(*tasks))
    await asyncio.to_thread(server.wait, 120)
    await clients.client.aclose()
    if server.returncode != 0:
        clients.faults.append(f"exit code {server.returncode} after SIGTERM")
    return ends


def main() -> None:
    """Run, print, and exit with 1 when something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument(
        "--max-queued", type=int, default=48, help="of the server: some requests must be refused"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the server: the clients need a CPU too")
    parser.add_argument("--engine", choices=["auto", "torch", "ctranslate2"], default="auto")
    parser.add_argument(
        "--cache-memory",
        help="of the server: the torch engine's attention cache takes memory until it is full, so give it little",
    )
    parser.add_argument(
        "--fill", type=int, default=0, help=f"prompts of {FILL_TOKENS} tokens first, which fill that cache"
    )
    parser.add_argument("--max-growth", type=float, default=0.05, help="of resident memory")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(arguments.artifact / "tokenizer.json"))
    code = Prompts(tokenizer)
    prompts, fill = (
        [tokenizer.decode(code.prompt(length), skip_special_tokens=False) for length in lengths]
        for lengths in ((4, 16, 40, 64, 90, 120), [FILL_TOKENS] * arguments.fill)
    )
    command = [COMMAND, arguments.artifact, "--port", "0"]
    command += ["--max-queued", str(arguments.max_queued), "--threads", str(arguments.threads)]
    command += ["--engine", arguments.engine]
    if arguments.cache_memory:
        command += ["--cache-memory", arguments.cache_memory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = (re.search(r" ready on (http://\S+): ", line) for line in server.stdout)
        address = next((found[1] for found in ready if found), None)
        if address is None:
            raise SystemExit(f"{arguments.artifact} did not start")
        try:
            result = asyncio.run(soak(server, address, prompts, fill, arguments))
        finally:
            server.terminate()
    passed = not result["faults"]
    report = json.dumps(
        {
            "verdict": "passed" if passed else "FAILED",
            "engine": arguments.engine,
            "cache_memory": arguments.cache_memory,
            **result,
            "environment": environment(arguments.threads),
        },
        indent=2,
    )
    print(report)
    if arguments.output:
        arguments.output.write_text(report + "\n", encoding="utf-8")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
