"""Types into files against a server, as an editor does; rows first, figures from the rows.

A file is typed into whole: what a server still holds of it depends on all that came before. So its rows are appended
when it is done, and a run that was interrupted begins that file again.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from pangu_bench.costs import spread
from pangu_bench.fim_forms import Form, Piece, accepted_form
from pangu_bench.keystrokes import Count, OpenFile, Typing, typing
from pangu_bench.latency import streamed
from pangu_bench.options import EditorOptions
from pangu_bench.rows import EditorRow, KeystrokeRow, RowFile
from pangu_bench.server_counts import read_counts
from pangu_training.asking.asker import connect, progress_bar
from pangu_training.asking.endpoint import Endpoint, ServedError

CHARACTERS_A_TOKEN = 3.5  # of code, where the server has no /tokenize
WARMUP = ("# The sum of two numbers.\n", "\n\nprint(add(1, 2))\n")


def is_typed(rows: RowFile, files: Sequence[int]) -> bool:
    """Whether no file of these sizes is missing."""
    return all(rows.has(EditorRow, file_tokens) for file_tokens in files)


async def type_files(
    rows: RowFile, endpoint: Endpoint, tokenizer: Any, files: Sequence[int], options: EditorOptions
) -> None:
    """Append the rows of the files of these sizes that are missing.

    Raises:
        ServedError: the server is gone, or refuses what is asked.
        UsageError: no text is that long.
    """
    count, counted = _count(tokenizer)
    async with connect(endpoint) as [connection]:
        form = await accepted_form(connection.client, endpoint.model, options.fim)
        editor = _Editor(connection.client, endpoint.model, form, options.new_tokens)
        for _ in range(options.warmup):
            await editor.complete(OpenFile(*WARMUP), None)
        for file_tokens in files:
            if rows.has(EditorRow, file_tokens):
                continue
            plan = typing(options, file_tokens, count, with_suffix=form.name != "off")
            before = await read_counts(connection.client)
            started = time.perf_counter()
            keystrokes = await editor.type(plan, file_tokens)
            seconds = time.perf_counter() - started
            served = (await read_counts(connection.client)).since(before)
            for row in keystrokes:
                if not rows.has(KeystrokeRow, file_tokens, row.keystroke):
                    rows.append(row)
            rows.append(
                EditorRow(
                    file_tokens=file_tokens,
                    text=plan.text,
                    counted=counted,
                    fim=form.name,
                    seconds=seconds,
                    server_prompt_tokens=served.prompt_tokens,
                    server_cached_tokens=served.cached_tokens,
                    server_generated_tokens=served.generated_tokens,
                    server_cancelled=served.cancelled,
                )
            )


def _count(tokenizer: Any) -> tuple[Count, bool]:
    """How tokens are counted, and whether they are, not guessed."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    try:
        count("x")
    except ServedError:  # it has no /tokenize, and need not: what is sent is text
        return lambda text: round(len(text) / CHARACTERS_A_TOKEN), False
    return count, True


@dataclass(slots=True)
class _Answer:
    """What has come of a completion; `seconds` is when the last of it came, or when it was dropped."""

    text: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int = 0
    ttft_seconds: float | None = None
    seconds: float = 0.0
    cancelled: bool = False

    def add(self, at: float, piece: Piece) -> None:
        """What an event brought, `at` seconds after the request."""
        self.seconds = at
        self.text += piece.text
        if piece.text and self.ttft_seconds is None:
            self.ttft_seconds = at
        if piece.prompt_tokens is not None:
            self.prompt_tokens = piece.prompt_tokens
        if piece.cached_tokens is not None:
            self.cached_tokens = piece.cached_tokens
        # A server that does not count in its events sends one for each token.
        self.completion_tokens = piece.completion_tokens or self.completion_tokens + bool(piece.text)


@dataclass(frozen=True, slots=True)
class _Editor:
    """Someone who types, and how the completions are asked for."""

    client: httpx.AsyncClient
    model: str
    form: Form
    new_tokens: int

    async def type(self, plan: Typing, file_tokens: int) -> list[KeystrokeRow]:
        """A row for each keystroke."""
        file, rows = OpenFile(plan.prefix, plan.suffix), list[KeystrokeRow]()
        with progress_bar(len(plan.keystrokes), f"file of {file_tokens:,} tokens", "keystroke") as bar:
            for number, keystroke in enumerate(plan.keystrokes):
                file.write(keystroke.typed)
                answer = await self.complete(file, keystroke.pause_seconds)
                if keystroke.accepts:
                    file.write(answer.text)
                rows.append(
                    KeystrokeRow(
                        file_tokens=file_tokens,
                        keystroke=number,
                        waited=keystroke.pause_seconds is None,
                        cancelled=answer.cancelled,
                        accepted=keystroke.accepts,
                        prompt_tokens=answer.prompt_tokens,
                        cached_tokens=answer.cached_tokens,
                        completion_tokens=answer.completion_tokens,
                        ttft_seconds=answer.ttft_seconds,
                        seconds=answer.seconds,
                    )
                )
                bar.update()
        return rows

    async def complete(self, file: OpenFile, pause_seconds: float | None) -> _Answer:
        """Ask for the code at the cursor; after a pause the connection is dropped, whatever has come."""
        answer, started = _Answer(), time.perf_counter()
        body = self.form.body(self.model, file.prefix, file.suffix, self.new_tokens)
        try:
            async with (
                asyncio.timeout(pause_seconds),
                streamed(self.client, self.form.path, body, model=self.model) as events,
            ):
                async for at, event in events:
                    answer.add(at, self.form.piece(event))
        except TimeoutError:
            answer.cancelled, answer.seconds = True, time.perf_counter() - started
            return answer
        if not answer.seconds:
            raise ServedError(f"{self.model}: the server sends no events: it does not stream")
        if answer.ttft_seconds is None:  # that an answer has no text is known at its end
            answer.ttft_seconds = answer.seconds
        return answer


def figures(rows: RowFile, files: Sequence[int]) -> list[dict[str, Any]]:
    """What typing into each of these files came to, the least first. Seconds, tokens."""
    typed = rows.of(KeystrokeRow)
    return [
        _file_figures(row, [one for one in typed if one.file_tokens == row.file_tokens])
        for row in sorted(rows.of(EditorRow), key=lambda row: row.file_tokens)
        if row.file_tokens in files
    ]


def _file_figures(file: EditorRow, rows: Sequence[KeystrokeRow]) -> dict[str, Any]:
    """Times are of the completions waited for: these are the same for every server, however slow it is."""
    opened = next(row for row in rows if row.keystroke == 0)
    waited = [row for row in rows if row.waited and row.keystroke > 0]
    dropped = [row for row in rows if row.cancelled]
    return {
        "file_tokens": file.file_tokens,
        "counted": file.counted,
        "text": file.text,
        "fim": file.fim,
        "keystrokes": len(rows) - 1,
        "waited": len(waited),
        "accepted": sum(row.accepted for row in rows),
        "cancelled": len(dropped),
        "opened_seconds": opened.ttft_seconds,
        "ttft_seconds": spread([row.ttft_seconds for row in waited if row.ttft_seconds is not None]),
        "answer_seconds": spread([row.seconds for row in waited]),
        "prompt_tokens": _median([row.prompt_tokens for row in waited]),
        "cached_tokens": _median([row.cached_tokens for row in waited]),
        "completion_tokens": _median([row.completion_tokens for row in waited]),
        "cancelled_work": _cancelled_work(file, rows),
        "server_cancelled": file.server_cancelled,
        "seconds": file.seconds,
    }


def _cancelled_work(file: EditorRow, rows: Sequence[KeystrokeRow]) -> dict[str, int | None]:
    """Tokens that the server computed for completions that nobody read: all that it counted, less the whole ones'."""
    whole = [row for row in rows if not row.cancelled]

    def rest(counted: int | None, theirs: Sequence[int | None]) -> int | None:
        known = [tokens for tokens in theirs if tokens is not None]
        return None if counted is None or len(known) < len(theirs) else counted - sum(known)

    prompt = rest(file.server_prompt_tokens, [row.prompt_tokens for row in whole])
    cached = rest(file.server_cached_tokens, [row.cached_tokens for row in whole])
    return {
        "prompt_tokens": None if prompt is None else prompt - (cached or 0),
        "cached_tokens": cached,
        "generated_tokens": rest(file.server_generated_tokens, [row.completion_tokens for row in whole]),
    }


def _median(tokens: Sequence[int | None]) -> float | None:
    known = [number for number in tokens if number is not None]
    return statistics.median(known) if known else None
