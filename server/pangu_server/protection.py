"""What stands between the network and the application, from the outside in:

request ids and their log, CORS, API keys, the body's limits. So a preflight needs no key, a refusal carries
CORS headers and an id, and nobody without a key gets a body read.
"""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from pangu_server.access import Access, RequireKey
from pangu_server.bodies import BodyLimit
from pangu_server.request_log import REQUEST_ID_HEADER, RequestLog

# What a page of another origin may read of our responses.
EXPOSED_HEADERS = (REQUEST_ID_HEADER, "x-pangu-ignored-fields", "retry-after")


def protect(
    app: ASGIApp,
    *,
    access: Access,
    max_body_bytes: int,
    cors_origins: Sequence[str] = (),
    log_requests: bool = False,
) -> ASGIApp:
    """`app` behind all of it. Wraps the whole application, so that its unexpected errors have an id too."""
    app = BodyLimit(app, max_body_bytes)
    if not access.open:
        app = RequireKey(app, access)
    if cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            expose_headers=EXPOSED_HEADERS,
        )
    return RequestLog(app, enabled=log_requests)
