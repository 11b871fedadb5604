"""What serving an artifact costs: memory, time to load, latency. Rows first, figures from the rows."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from pangu_bench.environment import environment, now
from pangu_bench.latency import Prompts, measure_latency, timed_request
from pangu_bench.memory import Meters, Peak
from pangu_bench.options import UsageError
from pangu_bench.rows import LatencyRow, MemoryRow, RowFile, RowsError, ServedRow
from pangu_convert.artifact import Artifact
from pangu_training.endpoint import Endpoint
from pangu_training.served import ServerProcess

CPU_METERS, GPU_METERS = ("pss",), ("nvml", "nvml_device")  # where the weights are; the first that there is


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """What is measured; counts are tokens or requests."""

    context: int  # at which the peak of memory is read
    prompt_tokens: tuple[int, ...]
    new_tokens: int
    warmup: int
    repeats: int

    def check(self, artifact: Artifact) -> None:
        """Raise `UsageError` unless all of it fits the artifact's context."""
        needed = max(self.context, self.new_tokens + max(self.prompt_tokens))
        if needed > artifact.manifest.context_length or self.context <= self.new_tokens:
            raise UsageError(
                f"{artifact.manifest.name} has a context of {artifact.manifest.context_length} tokens, which "
                f"--context {self.context}, and --prompt-tokens with --new-tokens {self.new_tokens}, must fit"
            )


def is_complete(rows: RowFile, options: CostOptions) -> bool:
    """Whether no row is missing."""
    return any(row.phase == "generating" for row in rows.of(MemoryRow)) and all(
        rows.has(LatencyRow, 1, length, request)
        for length in options.prompt_tokens
        for request in range(options.repeats)
    )


def measured_start(
    server: ServerProcess, rows: RowFile, *, meters: Meters, threads: int, copy_speed: float
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
    served = ServedRow(
        started_at=started_at,
        load_seconds=load_seconds,
        device=card["device"],
        backend=card["backend"],
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


async def measure_requests(
    rows: RowFile,
    endpoint: Endpoint,
    options: CostOptions,
    *,
    artifact: Artifact,
    meters: Meters,
    process_id: int,
) -> None:
    """Append the latency of requests alone, then the peak of memory in one that fills the context."""
    requests = len(options.prompt_tokens) * (options.warmup + options.repeats)
    prompts = Prompts(artifact, requests + 1)
    async with httpx.AsyncClient(**endpoint.client_options()) as client:
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
        prompt = prompts.prompt(requests, options.context - options.new_tokens)
        with Peak(meters, process_id) as generating:
            await timed_request(client, endpoint.model, prompt, options.new_tokens)
    _append(rows, "generating", generating.sizes, context_tokens=options.context)


def figures(rows: RowFile, artifact: Artifact) -> dict[str, Any]:
    """What the rows come to, as it stands in JSON and in the manifest. Bytes, seconds."""
    served = rows.of(ServedRow)
    last, manifest = served[-1], artifact.manifest
    what_runs = asdict(last)
    lengths = dict.fromkeys(row.prompt_tokens for row in rows.of(LatencyRow))
    return {
        "served": {name: what_runs[name] for name in ("backend", "device", "compute_type", "kernel")},
        "environment": {**last.environment, "copy_bytes_per_second": last.copy_bytes_per_second},
        "load_seconds": statistics.median(row.load_seconds for row in served),
        "disk_bytes": sum(file.size_bytes for file in manifest.files.values()),
        "weight_bytes": last.weight_bytes,
        "memory": _memory(rows.of(MemoryRow), CPU_METERS if last.device == "cpu" else GPU_METERS),
        "latency": [
            _latency([row for row in rows.of(LatencyRow) if row.prompt_tokens == length], last)
            for length in lengths
        ],
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
        "measured_at": environment["date"],
    }


def what_runs(row: ServedRow) -> str:
    """In words."""
    kernel = f" kernel {row.kernel}" if row.kernel else ""
    return f"{row.backend} {row.compute_type}{kernel} on {row.device}"


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


def _latency(rows: Sequence[LatencyRow], served: ServedRow) -> dict[str, Any]:
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
        # of what the memory moves; a GPU's own memory is not what was measured
        "bandwidth_share": served.weight_bytes * tokens_per_second / served.copy_bytes_per_second
        if tokens_per_second and served.device == "cpu"
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
