"""Endpoints that generate: completions, chat, responses, and two ways to fill in the middle."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from pangu_server.aside import Aside
from pangu_server.engine import Engine
from pangu_server.generation import Generation, GenerationOptions, Prompt
from pangu_server.parsing import BodyRequest, BodyRoute
from pangu_server.protocol.base import GenerationRequest, TokenIds
from pangu_server.protocol.chat import ChatRequest, FimRequest
from pangu_server.protocol.chat_answer import ChatForm, ChatResponse
from pangu_server.protocol.completion import CompletionForm, CompletionRequest, CompletionResponse
from pangu_server.protocol.llama import InfillRequest, LlamaCompletionRequest, LlamaRequest
from pangu_server.protocol.llama_answer import LlamaForm, LlamaResponse, LlamaResponses
from pangu_server.protocol.responses import ResponsesRequest
from pangu_server.protocol.responses_answer import ResponsesForm, ResponsesResponse
from pangu_server.rendering import MOST_WORKERS
from pangu_server.streaming import respond

CHOICE_WORK = 256  # token ids that can be copied while a choice begins
T = TypeVar("T")
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
STREAM: dict[str, Any] = {
    "description": "The whole answer, or with `stream` server-sent events of its pieces",
    "content": {"text/event-stream": {"schema": EVENT}},
}


def generation_routes(engine: Engine, errors: dict[int | str, Any]) -> APIRouter:
    """The router; `errors` documents the responses that are not a success."""
    router = APIRouter(responses={**errors, 200: STREAM}, route_class=BodyRoute)
    template_threads = ThreadPoolExecutor(MOST_WORKERS, thread_name_prefix="template")

    async def encode(request: BodyRequest, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)`, off the event loop when the body is so large that it takes a while."""
        aside: Aside = request.app.state.aside
        return await aside(request.size, function, *arguments)

    async def submit(
        prompts: Sequence[Prompt], options: GenerationOptions, body: GenerationRequest, request: BodyRequest
    ) -> Generation:
        aside: Aside = request.app.state.aside
        wanted = body.wanted()
        if wanted is not None and engine.ready:  # if it is not, the engine says so
            constraint = await engine.grammars.compile(wanted)
            options = replace(options, sampling=replace(options.sampling, constraint=constraint))
        work = options.best_of * sum(CHOICE_WORK + len(prompt.ids) for prompt in prompts)
        loop = asyncio.get_running_loop()
        generation = await aside(work, partial(engine.submit, prompts, options, loop=loop))
        engine.metrics.submitted(options.n, options.sampling.max_tokens)
        return generation

    async def conversation(body: ChatRequest, request: BodyRequest) -> tuple[Prompt, GenerationOptions]:
        # Always off the loop: a template computes as long as it likes, up to its bounds.
        loop, aside = asyncio.get_running_loop(), request.app.state.aside
        text = await loop.run_in_executor(template_threads, body.text, engine)
        prompt = await aside(len(text), body.prompt, text, engine)  # of any body: a template may write more
        return prompt, await encode(request, body.generation_options, engine, len(prompt.ids))

    def head(body: GenerationRequest, request: Request) -> dict[str, Any]:
        state = request.scope.get("state", {})
        return {
            "id": state.get("request_id") or uuid.uuid4().hex,
            "created": int(time.time()),
            "model": body.model or engine.model_names[0],
            "encoder": engine.encoder,
        }

    @router.post("/v1/completions", response_model=CompletionResponse)
    async def completions(body: CompletionRequest, request: BodyRequest) -> Response:
        """Complete prompts, or fill the hole before `suffix`. `stream` answers with server-sent events."""
        options = await encode(request, body.generation_options, engine)
        prompts = await encode(request, body.prompts, engine)
        token_ids = TokenIds(prompts, options.n) if body.return_token_ids else None
        form = CompletionForm(**head(body, request), logprobs=body.logprobs is not None, token_ids=token_ids)
        return await respond(await submit(prompts, options, body, request), form, body, request)

    @router.post("/v1/chat/completions", response_model=ChatResponse)
    async def chat(body: ChatRequest, request: BodyRequest) -> Response:
        """Answer a conversation by the checkpoint's chat template."""
        prompt, options = await conversation(body, request)
        form = ChatForm(
            **head(body, request),
            logprobs=bool(body.logprobs),
            token_ids=TokenIds([prompt], 1) if body.return_token_ids else None,
            calls=body.calls,
            most_calls=1 if body.parallel_tool_calls is False else None,
        )
        return await respond(await submit([prompt], options, body, request), form, body, request)

    @router.post("/v1/responses", response_model=ResponsesResponse)
    async def responses(body: ResponsesRequest, request: BodyRequest) -> Response:
        """Answer a conversation, in the form of OpenAI's responses. None is kept."""
        chat = await encode(request, body.chat, engine)
        prompt, options = await conversation(chat, request)
        generation = await submit([prompt], options, chat, request)
        told = head(body, request)
        form = ResponsesForm(told["id"], told["created"], told["model"], body, generation)
        return await respond(generation, form, body, request, done=False)

    @router.post("/v1/fim/completions", response_model=ChatResponse)
    async def fim(body: FimRequest, request: BodyRequest) -> Response:
        """Fill in the middle, in Mistral's form."""
        prompt, options = await encode(request, body.generation, engine)
        token_ids = TokenIds([prompt], 1) if body.return_token_ids else None
        form = ChatForm(**head(body, request), logprobs=False, token_ids=token_ids)
        return await respond(await submit([prompt], options, body, request), form, body, request)

    @router.post("/completion", response_model=LlamaResponse | LlamaResponses)
    @router.post("/completions", response_model=LlamaResponse | LlamaResponses, include_in_schema=False)
    async def llama_completion(body: LlamaCompletionRequest, request: BodyRequest) -> Response:
        """Complete prompts, in llama.cpp's form."""
        prompts, options = await encode(request, body.generation, engine)
        return await in_llamas_form(prompts, options, body, request)

    @router.post("/infill", response_model=LlamaResponse | LlamaResponses)
    async def infill(body: InfillRequest, request: BodyRequest) -> Response:
        """Fill in the middle, in llama.cpp's form."""
        prompt, options = await encode(request, body.generation, engine)
        return await in_llamas_form([prompt], options, body, request)

    async def in_llamas_form(
        prompts: Sequence[Prompt], options: GenerationOptions, body: LlamaRequest, request: BodyRequest
    ) -> Response:
        generation = await submit(prompts, options, body, request)
        form = LlamaForm(
            body.model or engine.model_names[0],
            engine,
            generation,
            token_ids=bool(body.return_tokens or body.return_token_ids),
            logprobs=options.sampling.logprobs is not None,
        )
        return await respond(generation, form, body, request, done=False)

    return router
