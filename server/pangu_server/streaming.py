"""A generation as an HTTP response: server-sent events, or one JSON body. A client that goes away cancels it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from pangu_server.aside import Aside
from pangu_server.completion import Delta
from pangu_server.connections import COMMENT
from pangu_server.errors import ServerError
from pangu_server.generation import Generation
from pangu_server.protocol.base import ErrorResponse, GenerationRequest, Usage
from pangu_server.protocol.events import NamedEvent
from pangu_server.responses import json_bytes, json_response

KEEP_ALIVE = b": keep-alive\n\n"  # a comment of server-sent events: clients skip it
WRITTEN = 64  # characters that take as long as one log-probability
IGNORED_HEADER, IGNORED_HEADER_LENGTH = "x-pangu-ignored-fields", 1000


class Form(Protocol):
    """How an endpoint writes its answers."""

    def body(self, deltas: Sequence[Delta], usage: Usage | None) -> BaseModel:
        """A whole answer: one delta a choice."""

    def chunk(self, deltas: Sequence[Delta], usage: Usage | None) -> BaseModel | Sequence[BaseModel]:
        """An event: one delta, or none and the usage. A delta may also make several, or none."""


async def respond(
    generation: Generation, form: Form, body: GenerationRequest, request: Request, *, done: bool = True
) -> Response:
    """The response to `body`, streamed if it asks for that; `done`: a stream ends with `[DONE]`.

    Raises:
        ServerError: the generation failed before there was a response.
    """
    # Names come from the client: quoted, they cannot break the header.
    names = (name[:IGNORED_HEADER_LENGTH] for name in body.ignored_fields()[:IGNORED_HEADER_LENGTH])
    ignored = quote(",".join(names)[:IGNORED_HEADER_LENGTH], safe=",")[:IGNORED_HEADER_LENGTH]
    headers = {IGNORED_HEADER: ignored} if ignored else {}
    record = request.scope.setdefault("state", {}).setdefault("log", {})
    if body.stream:
        return EventStream(generation, form, body, request, record, headers=headers, done=done)
    try:
        deltas = await _collect(generation, request)
    finally:
        _note(record, generation, stream=False)
    record["finish_reason"] = deltas[0].finish_reason
    aside: Aside = request.app.state.aside

    def write() -> Response:
        return json_response(form.body(generation.best(deltas), Usage.of(generation)), headers)

    return await aside(sum(map(_size, deltas)), write)


class EventStream(StreamingResponse):
    """Server-sent events of one generation."""

    def __init__(
        self,
        generation: Generation,
        form: Form,
        body: GenerationRequest,
        request: Request,
        record: dict[str, Any],
        *,
        headers: dict[str, str],
        done: bool,
    ) -> None:
        self._generation, self._form, self._record, self._done = generation, form, record, done
        options = body.stream_options
        self._usage_last = options is not None and options.include_usage
        self._aside: Aside = request.app.state.aside
        self._silent_seconds = request.app.state.engine.limits.sse_keep_alive
        request.scope["state"][COMMENT] = KEEP_ALIVE
        self._usage_always = self._usage_last and options is not None and options.continuous_usage_stats
        super().__init__(
            self._events(),
            media_type="text/event-stream",
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in the generator: one that was never started would not run its `finally`.
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()
            _note(self._record, self._generation, stream=True)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for deltas in _or_silence(self._generation, self._silent_seconds):
                if deltas is None:
                    yield KEEP_ALIVE
                    continue
                usage = Usage.of(self._generation) if self._usage_always else None
                # An event a delta, but one write for all that are there: a fast model would otherwise fill
                # the buffer of a client that is gone before the loop could notice.
                yield await self._aside(sum(map(_size, deltas)), self._written, deltas, usage)
                self._record["finish_reason"] = deltas[-1].finish_reason
            if self._usage_last and self._done:
                yield _event(self._form.chunk([], Usage.of(self._generation)))
        except ServerError as error:
            self._record["finish_reason"] = "error"
            yield _event(ErrorResponse.of(error))
        if self._done:
            yield b"data: [DONE]\n\n"

    def _written(self, deltas: Sequence[Delta], usage: Usage | None) -> bytes:
        return b"".join(_event(self._form.chunk([delta], usage)) for delta in deltas)


async def _or_silence(generation: Generation, seconds: float) -> AsyncIterator[list[Delta] | None]:
    """What a generation gives, and None whenever it has given nothing for `seconds`; 0: never."""
    pieces = aiter(generation)
    while True:
        piece = asyncio.ensure_future(anext(pieces, []))
        try:
            while not (await asyncio.wait({piece}, timeout=seconds or None))[0]:
                yield None
        finally:
            piece.cancel()  # no matter when it is done
        if not (deltas := piece.result()):
            return
        yield deltas


def _size(delta: Delta) -> int:
    """Of what is written of it, roughly, in bytes of text that takes as long."""
    reported = (1 + len(token.logprobs.top) if token.logprobs else 1 for token in delta.tokens)
    return len(delta.text) + WRITTEN * sum(reported)


def _event(chunk: BaseModel | Sequence[BaseModel]) -> bytes:
    chunks = (chunk,) if isinstance(chunk, BaseModel) else chunk
    return b"".join(_name(one) + b"data: " + json_bytes(one) + b"\n\n" for one in chunks)


def _name(chunk: BaseModel) -> bytes:
    return b"event: " + chunk.type.encode() + b"\n" if isinstance(chunk, NamedEvent) else b""


async def _collect(generation: Generation, request: Request) -> list[Delta]:
    """All choices whole, in order; cancels when the client goes away before."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        generation.cancel()

    watcher = asyncio.create_task(watch())
    try:
        deltas = [delta async for deltas in generation for delta in deltas]
        return sorted(deltas, key=lambda delta: delta.index)
    finally:
        watcher.cancel()
        generation.cancel()


def _note(record: dict[str, Any], generation: Generation, *, stream: bool) -> None:
    """What the request's log line says of its generation. No text of it."""
    record.update(
        stream=stream,
        prompt_tokens=generation.prompt_tokens,
        cached_tokens=generation.cached_tokens,
        completion_tokens=generation.completion_tokens,
        queue_seconds=generation.queue_seconds,
        ttft_seconds=generation.ttft_seconds,
    )
