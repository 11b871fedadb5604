"""A name for each request, and a line in the log when it has ended.

`scope["state"]` gets `request_id`, and `log`, a dictionary to which the application adds what it knows
(numbers and names; never text of a prompt or a completion).
"""

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pangu_server.logs import current_request_id

REQUEST_ID_HEADER = "x-request-id"
PROBES = frozenset({"/health", "/ready", "/metrics"})  # logged when they fail only: they come all the time

logger = logging.getLogger("pangu_server.access")


class RequestLog:
    """Outermost: sees each response and its end, a stream's too. Logs only when `enabled`."""

    def __init__(self, app: ASGIApp, *, enabled: bool) -> None:
        self._app, self._enabled = app, enabled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_seconds = time.perf_counter()
        request_id = _request_id(scope)
        current_request_id.set(request_id)  # for whatever else is logged on the way
        log: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, log=log)
        status: int | None = None
        complete = disconnected = False

        async def watched_receive() -> Message:
            nonlocal disconnected
            message = await receive()
            disconnected |= message["type"] == "http.disconnect" and not complete
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)
            complete |= message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, watched_receive, watched_send)
        except Exception:
            if not complete:  # else it was answered and logged by Starlette, which raises it again
                raise
        finally:
            if self._enabled and (scope["path"] not in PROBES or status != 200):
                fields = {
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration_seconds": round(time.perf_counter() - started_seconds, 6),
                    "client": scope["client"][0] if scope.get("client") else None,
                    **log,
                }
                if disconnected:
                    fields["disconnected"] = True
                elif not complete:
                    fields["broken_off"] = True
                logger.info("request", extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return sent if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", sent) else uuid.uuid4().hex
