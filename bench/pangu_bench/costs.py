"""What serving an artifact costs: memory, time to load, latency. Rows first, figures from the rows."""

import asyncio
import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx

from pangu_bench.embedding import lookup_bytes
from pangu_bench.environment import (
    copy_bytes_per_second,
    environment,
    gpu_copy_bytes_per_second,
    now,
)
from pangu_bench.latency import EndpointTokenizer, Prompts, measure_latency, timed_request, tokenizer_of
from pangu_bench.memory import Meters, Peak, gpu_names
from pangu_bench.options import CostOptions
from pangu_bench.rows import LatencyRow, MemoryRow, RowFile, RowsError, ServedRow
from pangu_convert.artifact import Artifact
from pangu_training.asking.asker import connect
from pangu_training.asking.endpoint import Endpoint
from pangu_training.asking.server_process import ServerProcess
from pangu_training.stage.command import ServerOptions

SERVED = ("backend", "engine", "device", "compute_type", "kernel")  # what runs, of `/v1/models`
# Of a GPU, unless it is said: the server's own default is all that is left, and would be all that is measured.
GPU_CACHE_MEMORY = "4GB"
CPU_METERS, GPU_METERS = ("pss",), ("nvml", "nvml_device")  # where the weights are; the first that there is


def is_complete(rows: RowFile, options: CostOptions) -> bool:
    """Whether no row of an artifact is missing."""
    return any(row.phase == "generating" for row in rows.of(MemoryRow)) and is_timed(rows, options)


def is_timed(rows: RowFile, options: CostOptions) -> bool:
    """Whether no timed request is missing."""
    return all(
        rows.has(LatencyRow, 1, length, request)
        for length in options.prompt_tokens
        for request in range(options.repeats)
    )


@contextlib.contextmanager
def measured_server(
    artifact: Artifact, rows: RowFile, costs: CostOptions | None, *, options: ServerOptions, log: Path
) -> Iterator[Endpoint]:
    """Serve `artifact` for as long as the context lasts; its start is measured, and by `costs` what it costs."""
    meters, threads = Meters(), options.threads
    if options.cache_memory is None and options.device != "cpu" and gpu_names():
        options = replace(options, cache_memory=GPU_CACHE_MEMORY)
    copy_speed = copy_bytes_per_second(threads)
    with ServerProcess(artifact.path, options, log=log) as server:
        endpoint = _measured_start(server, rows, meters=meters, threads=threads, copy_speed=copy_speed)
        if costs and not is_complete(rows, costs):
            asyncio.run(
                _measure_requests(
                    rows, endpoint, costs, artifact=artifact, meters=meters, process_id=server.process_id
                )
            )
        yield endpoint


def _measured_start(
    server: ServerProcess, rows: RowFile, *, meters: Meters, threads: int, copy_speed: float | None
) -> Endpoint:
    """Wait for `server`, just started; append what it took and what it holds.

    Raises:
        ServedError: it does not start.
        RowsError: something else runs than in the rows that are there.
    """
    started_at = now()
    with Peak(meters, server.process_id) as loading:
        endpoint, load_seconds = server.ready()
    card = endpoint.card
    if card["device"] != "cpu":
        copy_speed = gpu_copy_bytes_per_second()
    served = ServedRow(
        started_at=started_at,
        load_seconds=load_seconds,
        device=card["device"],
        backend=card["backend"],
        engine=card["engine"],
        compute_type=card["compute_type"],
        kernel=card["kernel"],
        weight_bytes=card["weight_bytes"],
        copy_bytes_per_second=copy_speed,
        environment=environment(threads),
    )
    for earlier in rows.of(ServedRow):
        if what_runs(earlier) != what_runs(served):
            raise RowsError(
                f"the rows so far are of {what_runs(earlier)}, now {what_runs(served)} runs: choose another output"
            )
    rows.append(served)
    for phase, sizes in (("loading", loading.sizes), ("loaded", meters.read(server.process_id))):
        _append(rows, phase, sizes, context_tokens=0)
    return endpoint


async def _measure_requests(
    rows: RowFile,
    endpoint: Endpoint,
    options: CostOptions,
    *,
    artifact: Artifact,
    meters: Meters,
    process_id: int,
) -> None:
    """Append the latency of requests alone, then the peak of memory in one that fills the context."""
    prompts = Prompts(tokenizer_of(artifact))
    async with connect(endpoint) as [connection]:
        await _time(rows, connection.client, endpoint, prompts, options)
        prompt = prompts.prompt(options.context - options.new_tokens)
        with Peak(meters, process_id) as generating:
            await timed_request(connection.client, endpoint.model, prompt, options.new_tokens)
    _append(rows, "generating", generating.sizes, context_tokens=options.context)


async def measure_running(rows: RowFile, endpoint: Endpoint, options: CostOptions) -> None:
    """Append the latency of requests alone: all that can be measured of a server that runs elsewhere.

    Raises:
        ServedError: it has no /tokenize, or does not answer as timing needs it.
    """
    prompts = Prompts(EndpointTokenizer(endpoint))
    async with connect(endpoint) as [connection]:
        await _time(rows, connection.client, endpoint, prompts, options)


async def _time(
    rows: RowFile, client: httpx.AsyncClient, endpoint: Endpoint, prompts: Prompts, options: CostOptions
) -> None:
    await measure_latency(
        rows,
        client,
        endpoint.model,
        prompts,
        lengths=options.prompt_tokens,
        new_tokens=options.new_tokens,
        warmup=options.warmup,
        repeats=options.repeats,
    )


def figures(rows: RowFile, artifact: Artifact) -> dict[str, Any]:
    """The figures of the rows, as JSON output and manifest have them. Bytes, seconds."""
    served = rows.of(ServedRow)
    last, manifest = served[-1], artifact.manifest
    what_runs = asdict(last)
    return {
        "served": {name: what_runs[name] for name in SERVED},
        "environment": {**last.environment, "copy_bytes_per_second": last.copy_bytes_per_second},
        "load_seconds": statistics.median(row.load_seconds for row in served),
        "disk_bytes": sum(file.size_bytes for file in manifest.files.values()),
        "weight_bytes": last.weight_bytes,
        "memory": _memory(rows.of(MemoryRow), CPU_METERS if last.device == "cpu" else GPU_METERS),
        "latency": _latencies(rows, _reading_seconds(last, artifact)),
    }


def running_figures(rows: RowFile, endpoint: Endpoint) -> dict[str, Any]:
    """`figures` of a server that runs elsewhere: None for what cannot be measured from outside."""
    memory = ("meter", "loading_bytes", "loaded_bytes", "generating_bytes", "context_tokens")
    return {
        "served": {name: endpoint.card.get(name) for name in SERVED},
        **dict.fromkeys(("environment", "load_seconds", "disk_bytes", "weight_bytes")),
        "memory": dict.fromkeys(memory),
        "latency": _latencies(rows, None),
    }


def in_short(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What of `figures` the manifest keeps and the server shows."""
    environment = figures["environment"]
    return {
        **figures["served"],
        "threads": environment["threads"],
        "memory": figures["memory"],
        "load_seconds": figures["load_seconds"],
        "latency": [
            {
                "prompt_tokens": latency["prompt_tokens"],
                **{
                    name: latency[name] and latency[name]["median"]
                    for name in ("ttft_seconds", "tpot_seconds")
                },
                "tokens_per_second": latency["tokens_per_second"],
            }
            for latency in figures["latency"]
        ],
        **_editor_in_short(figures.get("editor")),
        "measured_at": environment["date"],
    }


def _editor_in_short(typed: Mapping[str, Any] | None) -> dict[str, Any]:
    if not typed or not typed["ttft_seconds"]:
        return {}
    kept = {name: typed[name] for name in ("file_tokens", "fim")}
    return {"editor": {**kept, "ttft_seconds": typed["ttft_seconds"]["median"]}}


def what_runs(row: ServedRow) -> str:
    """In words."""
    kernel = f" kernel {row.kernel}" if row.kernel else ""
    return f"{row.backend} {row.compute_type}{kernel} on {row.device} by the {row.engine} engine"


def _append(rows: RowFile, phase: str, sizes: Mapping[str, int], *, context_tokens: int) -> None:
    for meter, size_bytes in sizes.items():
        if not rows.has(MemoryRow, phase, meter, context_tokens):
            rows.append(
                MemoryRow(phase=phase, meter=meter, context_tokens=context_tokens, size_bytes=size_bytes)
            )


def _memory(rows: Sequence[MemoryRow], meters: Sequence[str]) -> dict[str, Any]:
    meter = next(meter for meter in meters if any(row.meter == meter for row in rows))
    own = {row.phase: row for row in rows if row.meter == meter}
    return {
        "meter": meter,
        **{f"{phase}_bytes": row.size_bytes for phase, row in own.items()},
        "context_tokens": own["generating"].context_tokens,
    }


def _reading_seconds(served: ServedRow, artifact: Artifact) -> float | None:
    """What a token would take whose weights are read as fast as memory is copied."""
    speed = served.copy_bytes_per_second
    return None if speed is None else (served.weight_bytes - lookup_bytes(artifact)) / speed


def _latencies(rows: RowFile, reading_seconds: float | None) -> list[dict[str, Any]]:
    timed = rows.of(LatencyRow)
    return [
        _latency([row for row in timed if row.prompt_tokens == length], reading_seconds)
        for length in dict.fromkeys(row.prompt_tokens for row in timed)
    ]


def _latency(rows: Sequence[LatencyRow], reading_seconds: float | None) -> dict[str, Any]:
    tpot = spread([row.tpot_seconds for row in rows if row.tpot_seconds is not None])
    tokens_per_second = 1 / tpot["median"] if tpot else None
    return {
        "prompt_tokens": rows[0].prompt_tokens,
        "new_tokens": rows[0].completion_tokens,
        "requests": len(rows),
        "ttft_seconds": spread([row.ttft_seconds for row in rows]),
        "itl_seconds": spread([gap for row in rows for gap in row.itl_seconds]),
        "tpot_seconds": tpot,
        "tokens_per_second": tokens_per_second,
        "bandwidth_share": tokens_per_second * reading_seconds
        if tokens_per_second and reading_seconds is not None
        else None,
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, median, 95th percentile (nearest rank), most; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = -(-95 * len(ordered) // 100) - 1
    return {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p95": ordered[rank],
        "max": ordered[-1],
    }
