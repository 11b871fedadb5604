"""`pangu-bench load`: throughput and latency of an artifact, or of a running server, over the requests at a time.

A closed loop: at each level that many clients ask one request after the other, until --requests are done. Lengths are
mixed: request i has the i-th of --prompt-tokens and of --new-tokens, over and over. A level is measured whole; what is
in --output is not measured again.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_bench.options import Running, UsageError, running_server
from pangu_bench.rows import LatencyRow, LoadRow, Row, RowFile, read_rows
from pangu_training.stage.command import ServerOptions
from pangu_training.stage.options import argument, counted, nested, option
from pangu_training.stage.output import write_file

if TYPE_CHECKING:
    from pangu_bench.latency import Prompts
    from pangu_training.asking.asker import Connection
    from pangu_training.asking.endpoint import Endpoint


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What is asked; counts are tokens or requests. Part of a result's configuration."""

    prompt_tokens: tuple[int, ...] = counted("", (64, 512, 128))
    new_tokens: tuple[int, ...] = counted("", (32, 64), least=2)
    requests: int = counted("a level", 48, metavar=None)
    warmup: int = counted("requests first", 3, least=0, metavar=None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasureLoadOptions:
    """Which server is loaded, and with what."""

    artifact: Path | None = argument("folder that pangu-convert wrote", None)
    base_url: Running | None = option(
        "load a server that runs already, called NAME in the results; its key is in $OPENAI_API_KEY",
        None,
        type=running_server,
        metavar="URL[=NAME]",
    )
    output: Path = option("folder for rows and table", metavar="DIR", writes="results")
    concurrency: tuple[int, ...] = counted("", (1, 2, 4, 8, 16))
    load: LoadOptions = nested(LoadOptions)
    server: ServerOptions = nested(ServerOptions)


def measure_load(options: MeasureLoadOptions) -> None:
    """Measure the levels that are missing, report all."""
    from pangu_bench.latency import Prompts
    from pangu_bench.subject import Subject

    load = options.load
    subject = Subject.of(options.artifact, options.base_url, options.server)
    if subject.context and max(load.prompt_tokens) + max(load.new_tokens) > subject.context:
        raise UsageError(
            f"{subject.name} has a context of {subject.context} tokens: lower --prompt-tokens or --new-tokens"
        )
    levels = sorted(set(options.concurrency))
    configuration = {"subject": subject.identity, **dataclasses.asdict(load)}
    with RowFile(subject.file(options.output, "load.jsonl"), configuration) as rows:
        missing = [level for level in levels if not rows.has(LoadRow, level)]
        if missing:
            prompts = Prompts(subject.tokenizer)
            with subject.served(rows, options.output) as endpoint:
                asyncio.run(_measure(rows, endpoint, prompts, missing, load))
        report = {
            "model": subject.name,
            "options": dataclasses.asdict(load),
            **subject.what_ran(rows),
            "levels": [figures for figures in _figures(rows.rows) if figures["concurrency"] in levels],
        }
    text = table(report)
    write_file(subject.file(options.output, "load.md"), text.encode())
    print(text)
    print(json.dumps(report))


async def _measure(
    rows: RowFile, endpoint: "Endpoint", prompts: "Prompts", levels: Sequence[int], options: LoadOptions
) -> None:
    from pangu_bench.latency import timed_request
    from pangu_training.asking.asker import connect

    lengths, news = options.prompt_tokens, options.new_tokens

    async def ask(connection: "Connection", request: int, concurrency: int) -> LatencyRow:
        return await timed_request(
            connection.client,
            endpoint.model,
            prompts.prompt(lengths[request % len(lengths)]),
            news[request % len(news)],
            request=request,
            concurrency=concurrency,
        )

    async with connect(endpoint) as [connection]:
        for request in range(options.warmup):
            await ask(connection, request, 1)
        for level in levels:
            done, seconds = await _level(connection, ask, level, options.requests)
            for row in done:
                if not rows.has(LatencyRow, level, row.prompt_tokens, row.request):
                    rows.append(row)
            rows.append(
                LoadRow(
                    concurrency=level,
                    requests=len(done),
                    prompt_tokens=sum(row.prompt_tokens for row in done),
                    completion_tokens=sum(row.completion_tokens for row in done),
                    seconds=seconds,
                )
            )


async def _level(
    connection: "Connection",
    ask: Callable[["Connection", int, int], Awaitable[LatencyRow]],
    level: int,
    requests: int,
) -> tuple[list[LatencyRow], float]:
    """The requests of a level in the order of their ends, and the seconds from the first's start to the last's end."""
    from pangu_training.asking.asker import progress_bar, share

    done: list[LatencyRow] = []

    async def keep(connection: "Connection", request: int) -> None:
        done.append(await ask(connection, request, level))

    with progress_bar(requests, f"{level} at a time", "request") as bar:
        started = time.perf_counter()
        await share([connection], range(requests), keep, concurrency=level, bar=bar)
        return done, time.perf_counter() - started


def measured_levels(file: Path) -> list[dict[str, Any]]:
    """What each level of a result file comes to, the least first."""
    return _figures(read_rows(file)[1])


def _figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    requests = [row for row in rows if isinstance(row, LatencyRow)]
    levels = sorted((row for row in rows if isinstance(row, LoadRow)), key=lambda row: row.concurrency)
    return [
        _level_figures(level, [row for row in requests if row.concurrency == level.concurrency])
        for level in levels
    ]


def _level_figures(level: LoadRow, requests: Sequence[LatencyRow]) -> dict[str, Any]:
    from pangu_bench.costs import spread

    return {
        "concurrency": level.concurrency,
        "requests": level.requests,
        "seconds": level.seconds,
        "requests_per_second": level.requests / level.seconds,
        "tokens_per_second": level.completion_tokens / level.seconds,
        "prompt_tokens_per_second": level.prompt_tokens / level.seconds,
        "ttft_seconds": spread([row.ttft_seconds for row in requests]),
        "itl_seconds": spread([gap for row in requests for gap in row.itl_seconds]),
    }


def table(report: dict[str, Any]) -> str:
    """The levels as Markdown."""
    from pangu_bench.cost_tables import machine, milliseconds, rows

    options = report["options"]
    head = (
        "at a time",
        "requests/s",
        "tokens/s generated",
        "tokens/s read",
        "TTFT median / p95, ms",
        "ITL median / p95, ms",
    )
    lines = rows(
        head,
        [
            (
                str(level["concurrency"]),
                f"{level['requests_per_second']:.2f}",
                f"{level['tokens_per_second']:.1f}",
                f"{level['prompt_tokens_per_second']:.1f}",
                milliseconds(level["ttft_seconds"], "median", "p95"),
                milliseconds(level["itl_seconds"], "median", "p95"),
            )
            for level in report["levels"]
        ],
    )
    return (
        f"# {report['model']} under load\n\n{lines}\n\n{options['requests']} requests a level; prompts of "
        f"{', '.join(map(str, options['prompt_tokens']))} tokens and answers of "
        f"{', '.join(map(str, options['new_tokens']))}, in turn. {report['served']}. {machine(report['environment'])}\n"
    )
