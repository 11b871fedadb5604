"""The web application over an engine. `create_app` reads nothing global and imports no framework."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from pangu_server.engine import Completion, Engine, FinishReason
from pangu_server.errors import GenerationFailed, NotReady, RequestError, ServerError
from pangu_server.metrics import Metrics
from pangu_server.page import add_page
from pangu_server.protocol import (
    Choice,
    CompletionRequest,
    CompletionResponse,
    ErrorDetail,
    ErrorResponse,
    ModelCard,
    ModelList,
    Usage,
)

logger = logging.getLogger(__name__)
IGNORED_HEADER, IGNORED_HEADER_LENGTH = "x-pangu-ignored-fields", 1000
# pydantic reports each member of a union by itself; this says it in one sentence
UNION_FIELDS = {
    "prompt": "Input should be a string or a list of token ids",
    "stop": "Input should be a string or a list of strings",
}


def create_app(engine: Engine, metrics: Metrics) -> FastAPI:
    """The application that serves `engine`."""
    app = FastAPI(title="pangu-coder2", description="OpenAI-style completion over a quantized code model")
    app.add_exception_handler(ServerError, _server_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse} for status in (400, 404, 429, 500, 503)
    }

    @app.post("/v1/completions", response_model=CompletionResponse, responses={**errors, 422: errors[400]})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        body.check_model(engine.model_names)
        completion = engine.submit(body.single_prompt(), body.options())
        head = CompletionResponse(
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.model or engine.model_names[0],
            choices=[],
        )
        # Names come from the client: quoted, they cannot break the header.
        ignored = quote(",".join(body.ignored_fields()), safe=",")[:IGNORED_HEADER_LENGTH]
        headers = {IGNORED_HEADER: ignored} if ignored else {}
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return CompletionStream(completion, head, with_usage=with_usage, headers=headers)
        text, finish_reason = await _collect(completion, request)
        whole = head.model_copy(
            update={
                "choices": [Choice(text=text, finish_reason=finish_reason)],
                "usage": _usage(completion),
            }
        )
        return Response(whole.model_dump_json(), media_type="application/json", headers=headers)

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[_model_card(engine, name) for name in engine.model_names])

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: errors[503]})
    async def ready() -> dict[str, str]:
        """Readiness: a completion would be taken."""
        if not engine.ready:
            raise NotReady("shutting down" if engine.draining else "the model is still loading")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    add_page(app)
    return app


class CompletionStream(StreamingResponse):
    """Server-sent events of one completion, ended by `[DONE]`. A client that goes away cancels it."""

    def __init__(
        self, completion: Completion, head: CompletionResponse, *, with_usage: bool, headers: dict[str, str]
    ) -> None:
        self._completion, self._head, self._with_usage = completion, head, with_usage
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
            self._completion.cancel()

    async def _events(self) -> AsyncIterator[str]:
        try:
            async for delta in self._completion:
                choice = Choice(text=delta.text, finish_reason=delta.finish_reason)
                yield self._event(choices=[choice])
            if self._with_usage:
                yield self._event(choices=[], usage=_usage(self._completion))
        except ServerError as error:
            yield f"data: {ErrorResponse.of(error).model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"

    def _event(self, *, choices: list[Choice], usage: Usage | None = None) -> str:
        event = self._head.model_copy(update={"choices": choices, "usage": usage})
        # Only the last chunk of a stream that asked for it has a usage.
        return f"data: {event.model_dump_json(exclude=None if usage else {'usage'})}\n\n"


async def _collect(completion: Completion, request: Request) -> tuple[str, FinishReason | None]:
    """The whole text and finish reason; cancels when the client goes away before."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        completion.cancel()

    watcher = asyncio.create_task(watch())
    pieces: list[str] = []
    finish_reason: FinishReason | None = None
    try:
        async for delta in completion:
            pieces.append(delta.text)
            finish_reason = delta.finish_reason
    finally:
        watcher.cancel()
        completion.cancel()
    return "".join(pieces), finish_reason


def _usage(completion: Completion) -> Usage:
    prompt_tokens, completion_tokens = completion.prompt_tokens, completion.completion_tokens
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def _model_card(engine: Engine, name: str) -> ModelCard:
    manifest, info = engine.artifact.manifest, engine.backend.info if engine.backend else None
    return ModelCard(
        id=name,
        created=int(datetime.fromisoformat(manifest.created_at).timestamp()),
        max_model_len=manifest.context_length,
        backend=info.name if info else None,
        device=info.device if info else None,
        quantization=manifest.quantization,
        compute_type=info.compute_type if info else None,
        kernel=info.kernel if info else None,
        weight_bytes=info.weight_bytes if info else manifest.weight_bytes,
        architecture=manifest.architecture,
        source=manifest.source.name,
        scores=dict(manifest.scores),
    )


def _error_response(error: ServerError, status: int | None = None) -> JSONResponse:
    headers = {} if error.retry_after_seconds is None else {"retry-after": str(error.retry_after_seconds)}
    return JSONResponse(ErrorResponse.of(error).model_dump(), status or error.status, headers=headers)


async def _server_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServerError)
    return _error_response(error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"the body is not valid JSON ({first.get('ctx', {}).get('error', 'cannot be parsed')})"
        return _error_response(RequestError(message))
    # loc is ("body", field, …); the members of a union add their own names behind the field
    field = str(first["loc"][1]) if len(first["loc"]) > 1 else None
    message = first["msg"] if first["type"] == "missing" else UNION_FIELDS.get(field or "", first["msg"])
    return _error_response(RequestError(f"{field or 'body'}: {message}", param=field))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = ErrorDetail(
        message=f"{error.detail}: {request.method} {request.url.path}", type="invalid_request_error"
    )
    return JSONResponse(ErrorResponse(error=detail).model_dump(), error.status_code, headers=error.headers)


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    logger.error("unexpected error", exc_info=error)
    return _error_response(GenerationFailed("unexpected error; the server's log has the cause"))
