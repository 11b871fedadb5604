"""Ill-behaved clients of a completion server, and a count of what they saw. `soak.py` runs them."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

BAD_BODIES: tuple[tuple[str, bytes], ...] = (
    ("/v1/completions", b""),
    ("/v1/completions", b"{"),
    ("/v1/completions", b"[]"),
    ("/v1/completions", b'{"prompt": "\\ud800"}'),
    ("/v1/completions", b'{"prompt": [-1, 99999999]}'),
    ("/v1/completions", b'{"prompt": "x", "max_tokens": 100000000}'),
    ("/v1/completions", b'{"prompt": "x", "temperature": NaN}'),
    ("/v1/completions", b'{"prompt": "x", "stop": ["", 1]}'),
    ("/v1/completions", b'{"prompt": "x", "model": "another"}'),
    ("/v1/completions", b'{"prompt": "' + b"x " * 200_000 + b'"}'),
    ("/v1/completions", b"\xff\xfe\x00"),
    ("/v1/chat/completions", b'{"messages": []}'),
    ("/v1/chat/completions", b'{"messages": [{"role": 1}]}'),
    ("/v1/fim/completions", b'{"suffix": 3}'),
    ("/infill", b'{"input_prefix": null}'),
    ("/tokenize", b"{}"),
    ("/detokenize", b'{"tokens": [-5]}'),
)


class Clients:
    """The clients and what they saw."""

    def __init__(self, address: str, prompts: list[str], max_tokens: int) -> None:
        self.client = httpx.AsyncClient(
            base_url=address, timeout=600, limits=httpx.Limits(max_connections=None)
        )
        self.prompts, self.max_tokens = prompts, max_tokens
        self.chance = random.Random(0)
        self.statuses: Counter[int] = Counter()
        self.actions: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.faults: list[str] = []

    def body(self, **changes: Any) -> dict[str, Any]:
        """A completion request, somehow."""
        tokens = self.chance.choice((1, self.max_tokens // 4, self.max_tokens))
        body = {"prompt": self.chance.choice(self.prompts), "max_tokens": tokens, "temperature": 0}
        return {**body, **changes}

    async def client_until(self, deadline: float) -> None:
        """One client: one action after another."""
        actions: list[Callable[[], Awaitable[None]]] = [
            self.whole_stream,
            self.leave_stream,
            self.leave_early,
            self.slow_reader,
            self.whole,
            self.choices,
            self.bad_body,
            self.other_endpoints,
        ]
        while time.monotonic() < deadline:
            action = self.chance.choice(actions)
            self.actions[action.__name__] += 1
            try:
                await action()
            except httpx.HTTPError as error:
                self.faults.append(f"{action.__name__}: {error!r}")

    def seen(self, answer: httpx.Response) -> bool:
        """Count a status; whether it is a success."""
        self.statuses[answer.status_code] += 1
        if answer.status_code >= 500 and answer.status_code != 503:
            self.faults.append(f"{answer.request.url.path} answered {answer.status_code}")
        return answer.status_code == 200

    async def stream(
        self,
        path: str,
        body: dict[str, Any],
        *,
        leave_after: int | None = None,
        pause_seconds: float = 0.0,
        begun: Callable[[], None] = lambda: None,
    ) -> str:
        """Read a stream; how it ended: done, error, left, refused or broken."""
        last, events = "", 0
        async with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            if not self.seen(answer):
                await answer.aread()
                return "refused"
            begun()
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                last, events = line.removeprefix("data: "), events + 1
                await asyncio.sleep(pause_seconds)
                if leave_after is not None and events > leave_after:
                    return "left"
        if last == "[DONE]":
            return "done"
        final = json.loads(last) if last else {}
        return "error" if "error" in final else "done" if final.get("stop") is True else "broken"

    async def count_stream(self, path: str, body: dict[str, Any], **how: Any) -> None:
        """`stream`, with its end counted; a broken one is a fault."""
        end = await self.stream(path, body, **how)
        self.ends[end] += 1
        if end == "broken":
            self.faults.append(f"a stream of {path} broke off")

    async def whole_stream(self) -> None:
        """To the end, by any of the endpoints that stream."""
        text = self.chance.choice(self.prompts)
        tokens = self.max_tokens // 2
        path, body = self.chance.choice(
            (
                ("/v1/completions", self.body(stream_options={"include_usage": True})),
                ("/v1/completions", self.body(n=2, temperature=0.8, seed=3)),
                ("/v1/completions", self.body(logprobs=2, echo=True)),
                (
                    "/v1/chat/completions",
                    {"messages": [{"role": "user", "content": text}], "max_tokens": tokens},
                ),
                ("/v1/fim/completions", {"prompt": text, "suffix": "\n", "max_tokens": tokens}),
                ("/infill", {"input_prefix": text, "input_suffix": "\n", "n_predict": tokens}),
            )
        )
        await self.count_stream(path, body)

    async def leave_stream(self) -> None:
        """Close the connection in the middle."""
        await self.count_stream("/v1/completions", self.body(), leave_after=self.chance.randrange(8))

    async def slow_reader(self) -> None:
        """A client that can hardly follow."""
        await self.count_stream("/v1/completions", self.body(), pause_seconds=0.1)

    async def leave_early(self) -> None:
        """Close the connection before there is an answer: in the queue, mostly."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.chance.uniform(0.005, 0.5)):
                self.seen(await self.client.post("/v1/completions", json=self.body()))

    async def whole(self) -> None:
        """Without a stream."""
        self.seen(await self.client.post("/v1/completions", json=self.body()))

    async def choices(self) -> None:
        """Several prompts, several choices, log-probabilities of the prompt alone."""
        changes = self.chance.choice(
            (
                {"prompt": self.prompts[:3]},
                {"n": 3, "temperature": 1.0},
                {"echo": True, "logprobs": 1, "max_tokens": 0},
                {"stop": ["\n", "def ", "class "]},
            )
        )
        self.seen(await self.client.post("/v1/completions", json=self.body(**changes)))

    async def bad_body(self) -> None:
        """What must be a 4xx."""
        path, content = self.chance.choice(BAD_BODIES)
        answer = await self.client.post(path, content=content, headers={"content-type": "application/json"})
        if self.seen(answer):
            self.faults.append(f"{path} took {content[:80]!r}")

    async def other_endpoints(self) -> None:
        """What does not generate."""
        for path in ("/v1/models", "/metrics", "/health", "/ready", "/version", "/openapi.json", "/nothing"):
            self.seen(await self.client.get(path))
        self.seen(await self.client.post("/tokenize", json={"prompt": self.chance.choice(self.prompts)}))

    async def gauge(self, name: str) -> float:
        """The sum of a gauge's samples."""
        text = (await self.client.get("/metrics")).text
        families = text_string_to_metric_families(text)
        return sum(s.value for family in families for s in family.samples if s.name == name)
