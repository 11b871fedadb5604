"""Endpoints that generate: completions, chat, and the two ways to fill in the middle."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from pangu_server.engine import Engine, Generation, GenerationOptions, Prompt
from pangu_server.protocol.base import GenerationRequest
from pangu_server.protocol.chat import ChatForm, ChatRequest, ChatResponse, FimRequest
from pangu_server.protocol.completion import CompletionForm, CompletionRequest, CompletionResponse
from pangu_server.protocol.infill import InfillForm, InfillRequest, InfillResponse
from pangu_server.streaming import respond


def generation_routes(engine: Engine, errors: dict[int | str, Any]) -> APIRouter:
    """The router; `errors` documents the responses that are not a success."""
    router = APIRouter(responses=errors)

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
        options = body.generation_options(engine)
        # Off the event loop: a large batch of prompts takes a while.
        prompts = await asyncio.to_thread(body.prompts, engine, options.sampling.max_tokens)
        form = CompletionForm(**head(body, request), logprobs=body.logprobs is not None)
        return await respond(submit(prompts, options), form, body, request)

    @router.post("/v1/chat/completions", response_model=ChatResponse)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation by the checkpoint's chat template."""
        prompt = await asyncio.to_thread(body.prompt, engine)
        options = body.generation_options(engine, len(prompt.ids))
        form = ChatForm(**head(body, request), logprobs=bool(body.logprobs))
        return await respond(submit([prompt], options), form, body, request)

    @router.post("/v1/fim/completions", response_model=ChatResponse)
    async def fim(body: FimRequest, request: Request) -> Response:
        """Fill in the middle, in Mistral's form."""
        prompt, options = await asyncio.to_thread(body.generation, engine)
        form = ChatForm(**head(body, request), logprobs=False)
        return await respond(submit([prompt], options), form, body, request)

    @router.post("/infill", response_model=InfillResponse)
    async def infill(body: InfillRequest, request: Request) -> Response:
        """Fill in the middle, in llama.cpp's form."""
        prompt, options = await asyncio.to_thread(body.generation, engine)
        generation = submit([prompt], options)
        form = InfillForm(body.model or engine.model_names[0], generation)
        return await respond(generation, form, body, request, done=False)

    return router
