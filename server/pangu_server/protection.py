"""What stands between the network and the application, from the outside in:

request ids and their log, HEAD, CORS, API keys, the body's limits. So a preflight needs no key, a refusal carries
CORS headers and an id, and nobody without a key gets a body read.
"""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pangu_server.access import Keys, RequireKey
from pangu_server.bodies import BodyLimit
from pangu_server.request_log import REQUEST_ID_HEADER, RequestLog

# What a page of another origin may read of our responses.
EXPOSED_HEADERS = (REQUEST_ID_HEADER, "x-pangu-ignored-fields", "retry-after")


class HeadAsGet:
    """HEAD is answered as GET is, without the body: what monitors ask."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def headers_only(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, headers_only)


def protect(
    app: ASGIApp,
    *,
    keys: Keys,
    max_body_bytes: int,
    cors_origins: Sequence[str] = (),
    log_requests: bool = False,
) -> ASGIApp:
    """`app` behind all of it. Wraps the whole application, so that its unexpected errors have an id too."""
    app = BodyLimit(app, max_body_bytes)
    if not keys.access.open:
        app = RequireKey(app, keys)
    if cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            expose_headers=EXPOSED_HEADERS,
        )
    return RequestLog(HeadAsGet(app), enabled=log_requests)
