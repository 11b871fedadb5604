"""A stand-in for an OpenAI-style server, with the page: answers as told, and remembers what it was asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from pangu_server.page import add_page

CARD = {
    "id": "standin",
    "max_model_len": 2048,
    "engine": "torch",
    "backend": "none",
    "device": "cpu",
    "quantization": "int8",
    "compute_type": "int8_float32",
    "kernel": None,
    "weight_bytes": 134_515_008,
    "architecture": "LlamaForCausalLM",
    "source": "standin/standin",
    "scores": {"humaneval": {"pass_at_k": {"1": 0.3354}, "samples": 164}},
    "chat": True,
    "fim": True,
}

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 6},
    "completion_tokens_details": {"accepted_prediction_tokens": 30, "rejected_prediction_tokens": 3},
}


class StandIn:
    """`answers[i]` is choice i, in pieces. `error`: (status, message, headers) for the next generations."""

    def __init__(self, answers: Sequence[Sequence[str]], *, key: str | None = None) -> None:
        self.answers, self.key = answers, key
        self.card: dict[str, Any] = dict(CARD)
        self.error: tuple[int, str, dict[str, str]] | None = None
        self.param: str | None = None  # of that error
        self.bodies: list[dict[str, Any]] = []
        self.app = app = FastAPI()
        app.middleware("http")(self._check_key)
        app.post("/v1/completions")(self._complete)
        app.post("/v1/chat/completions")(self._chat)
        app.get("/v1/models")(lambda: {"object": "list", "data": [self.card]})
        app.get("/version")(lambda: {"version": "9.9"})
        app.get("/ready")(lambda: {"status": "ready"})
        app.get("/metrics")(lambda: PlainTextResponse("# nothing\n"))
        add_page(app)

    async def _check_key(self, request: Request, call_next: Any) -> Response:
        given = request.headers.get("authorization")
        if self.key and request.url.path.startswith("/v1/") and given != f"Bearer {self.key}":
            return _error(401, "Incorrect API key provided.", {})
        answer: Response = await call_next(request)
        return answer

    async def _complete(self, body: dict[str, Any]) -> Response:
        return self._stream(body, lambda piece: {"text": piece})

    async def _chat(self, body: dict[str, Any]) -> Response:
        return self._stream(body, lambda piece: {"delta": {"content": piece}})

    def _stream(self, body: dict[str, Any], choice: Any) -> Response:
        self.bodies.append(body)
        if self.error is not None:
            return _error(*self.error, param=self.param)

        async def events() -> AsyncIterator[str]:
            for index, pieces in enumerate(self.answers[: body.get("n", 1)]):
                for piece in pieces:
                    yield _event(choices=[{"index": index, "finish_reason": None, **choice(piece)}])
                    await asyncio.sleep(0.01)
                yield _event(choices=[{"index": index, "finish_reason": "stop", **choice("")}])
            yield _event(choices=[], usage=USAGE)
            yield ": keep-alive\n\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


def _event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def _error(status: int, message: str, headers: dict[str, str], *, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "param": param}}, status, headers=headers)
