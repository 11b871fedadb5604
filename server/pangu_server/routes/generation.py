"""Endpoints that generate: completions, chat, and the two ways to fill in the middle."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from pangu_server.engine import Engine, Generation, GenerationOptions, Prompt
from pangu_server.protocol.base import GenerationRequest
from pangu_server.protocol.chat import ChatForm, ChatRequest, ChatResponse, FimRequest
from pangu_server.protocol.completion import CompletionForm, CompletionRequest, CompletionResponse
from pangu_server.protocol.infill import InfillForm, InfillRequest, InfillResponse
from pangu_server.streaming import respond

INLINE_BYTES = 32 << 10  # of a body: tokenizing it takes a few milliseconds
T = TypeVar("T")
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
STREAM: dict[str, Any] = {
    "description": "The whole answer, or with `stream` server-sent events of its pieces",
    "content": {"text/event-stream": {"schema": EVENT}},
}


def generation_routes(engine: Engine, errors: dict[int | str, Any]) -> APIRouter:
    """The router; `errors` documents the responses that are not a success."""
    router = APIRouter(responses={**errors, 200: STREAM})
    # One for all: tokenizing takes some 250 bytes of memory for each byte of text.
    encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    async def encode(request: Request, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)`, off the event loop when the body is so large that it takes a while."""
        length = request.headers.get("content-length")
        if length is not None and int(length) <= INLINE_BYTES:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(encoder_thread, function, *arguments)

    async def constrained(body: GenerationRequest, options: GenerationOptions) -> GenerationOptions:
        """`options` with the grammar that the request asks for, read off the event loop."""
        wanted = body.wanted()
        if wanted is None or not engine.ready:  # which `submit` says
            return options
        return replace(options, constraint=await engine.grammars.compile(wanted))

    def submit(prompts: Sequence[Prompt], options: GenerationOptions) -> Generation:
        generation = engine.submit(prompts, options)
        engine.metrics.submitted(options.n, options.sampling.max_tokens)
        return generation

    def head(body: GenerationRequest, request: Request) -> dict[str, Any]:
        state = request.scope.get("state", {})
        return {
            "id": state.get("request_id") or uuid.uuid4().hex,
            "created": int(time.time()),
            "model": body.model or engine.model_names[0],
            "encoder": engine.encoder,
        }

    @router.post("/v1/completions", response_model=CompletionResponse)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Complete prompts, or fill the hole before `suffix`. `stream` answers with server-sent events."""
        options = await encode(request, body.generation_options, engine)
        prompts = await encode(request, body.prompts, engine, options.sampling.max_tokens)
        form = CompletionForm(**head(body, request), logprobs=body.logprobs is not None)
        return await respond(submit(prompts, await constrained(body, options)), form, body, request)

    @router.post("/v1/chat/completions", response_model=ChatResponse)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation by the checkpoint's chat template."""
        prompt = await encode(request, body.prompt, engine)
        options = await encode(request, body.generation_options, engine, len(prompt.ids))
        form = ChatForm(**head(body, request), logprobs=bool(body.logprobs))
        return await respond(submit([prompt], await constrained(body, options)), form, body, request)

    @router.post("/v1/fim/completions", response_model=ChatResponse)
    async def fim(body: FimRequest, request: Request) -> Response:
        """Fill in the middle, in Mistral's form."""
        prompt, options = await encode(request, body.generation, engine)
        form = ChatForm(**head(body, request), logprobs=False)
        return await respond(submit([prompt], await constrained(body, options)), form, body, request)

    @router.post("/infill", response_model=InfillResponse)
    async def infill(body: InfillRequest, request: Request) -> Response:
        """Fill in the middle, in llama.cpp's form."""
        prompt, options = await encode(request, body.generation, engine)
        generation = submit([prompt], await constrained(body, options))
        form = InfillForm(body.model or engine.model_names[0], generation)
        return await respond(generation, form, body, request, done=False)

    return router
