"""Reads a request's body before the application does, so that none is too long or too slow, nor all together."""

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pangu_server.errors import BodyTimeout, BodyTooLarge, Overloaded, ServerError
from pangu_server.responses import error_response

BODY_SECONDS = 30.0
MOST_BODIES = 16  # of the greatest length, that may be on their way at once


class BodiesTooMany(Overloaded):
    """Too much is being sent at once; what is left of this body is not read."""

    headers: ClassVar[Mapping[str, str]] = {"connection": "close"}


class BodyLimit:
    """413 for a body above `max_bytes`, by its announced length or while it comes; 408 after `seconds`.

    Both close the connection: what is left of the body is not read. 429 when those on their way are too much.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds
        self._coming = 0  # bytes of all bodies that are being read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        try:
            self._check(int(headers.get("content-length", 0)))
            async with asyncio.timeout(self._seconds):
                body = await self._read(receive)
        except (ServerError, TimeoutError) as problem:
            timeout = BodyTimeout(f"the body did not arrive within {self._seconds:g} seconds")
            error = problem if isinstance(problem, ServerError) else timeout
            await error_response(error)(scope, receive, send)
            return
        if body is None:
            return  # the client is gone
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        body = bytearray()
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                piece = message.get("body", b"")
                body += piece
                self._coming += len(piece)
                self._check(len(body))
                if not message.get("more_body", False):
                    return bytes(body)
        finally:
            self._coming -= len(body)

    def _check(self, length: int) -> None:
        if length > self._max_bytes:
            raise BodyTooLarge(f"the body is longer than {self._max_bytes} bytes, which this server takes")
        if self._coming > MOST_BODIES * self._max_bytes:
            raise BodiesTooMany("other bodies are being read: try again in a moment")
