"""Endpoints about the server: what is served, tokens for text, health, metrics."""

from importlib import metadata
from typing import Any

from fastapi import APIRouter, Response

from pangu_server.aside import Aside
from pangu_server.engine import Engine
from pangu_server.errors import ModelNotFound, NotReady, RequestError
from pangu_server.parsing import BodyRequest, BodyRoute
from pangu_server.protocol.llama_answer import Props, Slot
from pangu_server.protocol.service import (
    DetokenizeRequest,
    DetokenizeResponse,
    ModelCard,
    ModelList,
    Status,
    TokenizeRequest,
    TokenizeResponse,
    Version,
)
from pangu_server.responses import json_response


def service_routes(engine: Engine, errors: dict[int | str, Any]) -> APIRouter:
    """The router; `errors` documents the responses that are not a success."""
    router = APIRouter(route_class=BodyRoute)
    wrong: dict[int | str, Any] = {status: errors[status] for status in (400, 401, 422)}

    @router.get("/v1/models", responses={401: errors[401]})
    async def models() -> ModelList:
        """What is served, under each of its names."""
        names = (*engine.model_names, *engine.adapters)
        return ModelList(data=[ModelCard.of(engine, name) for name in names])

    @router.get("/v1/models/{model:path}", responses={**wrong, 404: errors[404]})
    async def model(model: str) -> ModelCard:
        """The served model."""
        if not engine.answers_to(model):
            raise ModelNotFound(f"The model {model!r} does not exist", param="model")
        return ModelCard.of(engine, model)

    @router.post("/tokenize", response_model=TokenizeResponse, responses=wrong)
    async def tokenize(body: TokenizeRequest, request: BodyRequest) -> Response:
        """The tokens of a text."""
        aside: Aside = request.app.state.aside
        return await aside(request.size, tokens_of, body)

    def tokens_of(body: TokenizeRequest) -> Response:
        text = body.content if body.prompt is None else body.prompt
        if text is None:
            raise RequestError("prompt: give the text", param="prompt")
        tokens = engine.encoder.text(text, parse_special=body.parse_special is not False)
        if body.add_special_tokens is not False:
            tokens = engine.encoder.start_ids + tokens
        answer = TokenizeResponse(count=len(tokens), max_model_len=engine.context_length, tokens=tokens)
        return json_response(answer)

    @router.post("/detokenize", response_model=DetokenizeResponse, responses=wrong)
    async def detokenize(body: DetokenizeRequest, request: BodyRequest) -> Response:
        """The text of tokens."""
        aside: Aside = request.app.state.aside
        return await aside(request.size, text_of, body)

    def text_of(body: DetokenizeRequest) -> Response:
        engine.encoder.check_ids(body.tokens, "tokens")
        text = engine.encoder.decode(body.tokens)
        return json_response(DetokenizeResponse(prompt=text, content=text))

    @router.get("/props", responses={status: errors[status] for status in (401, 503)})
    async def props() -> Props:
        """What llama.cpp's clients ask before they begin: the context, how many at once, the chat template."""
        check_ready()
        return Props.of(engine, metadata.version("pangu-coder2"))

    @router.get("/slots", responses={status: errors[status] for status in (401, 503)})
    async def slots(fail_on_no_slot: str = "") -> list[Slot]:
        """How many completions run, in llama.cpp's form. With `fail_on_no_slot=1` 503 when no slot is free."""
        check_ready()
        found = Slot.all(engine)
        if fail_on_no_slot not in ("", "0") and all(slot.is_processing for slot in found):
            raise NotReady("no slot is free: try again in a moment")
        return found

    @router.get("/version")
    async def version() -> Version:
        """Of this software."""
        return Version(version=metadata.version("pangu-coder2"))

    @router.get("/health")
    async def health() -> Status:
        """Liveness: the process answers."""
        return Status(status="ok")

    @router.get("/ready", responses={503: errors[503]})
    async def ready() -> Status:
        """Readiness: a completion would be taken."""
        check_ready()
        return Status(status="ready")

    def check_ready() -> None:
        if not engine.ready:
            raise NotReady("shutting down" if engine.draining else "the model is still loading")

    @router.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Prometheus' text format."""
        return Response(engine.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
