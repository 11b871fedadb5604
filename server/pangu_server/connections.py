"""One client's connection, with what uvicorn leaves out: a cap, a time for headers, and the letter of RFC 9112."""

import asyncio
import errno
import logging
import resource
import time
from typing import Any
from urllib.parse import urlsplit

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_BYTES = 16 << 10  # of the request line and the headers
MOST_HEADERS = 100
HEAD_SECONDS = 20.0  # for them to come
# A client that has closed its side may still read. One that is gone resets the first write, and the second meets that.
PROBE_SECONDS = (0.0, 0.1, 1.0, 5.0)
RESERVED_FILES = 128  # descriptors for all that is not a connection: the model, the log, the page
WANTED_FILES = 65536
QUIET_SECONDS = 60
COMMENT = "comment"  # in `scope["state"]`: bytes that an answer may hold anywhere and that mean nothing
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 21\r\n\r\ntoo many connections\n"
)

logger = logging.getLogger(__name__)


class Requests(h11.Connection):
    """Reads requests, and refuses those whose end or whose size two readers could see differently."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, HEAD_BYTES)

    def next_event(self) -> Any:
        """See `h11.Connection`."""
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        names = [name for name, _ in event.headers]
        size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if len(names) > MOST_HEADERS or size > HEAD_BYTES:
            raise h11.RemoteProtocolError("too many or too long headers")
        if b"content-length" in names and b"transfer-encoding" in names:  # RFC 9112, 6.1
            raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        if event.target.lower().startswith((b"http://", b"https://")):  # RFC 9112, 3.2.2
            url = urlsplit(event.target)
            target = (url.path or b"/") + (b"?" + url.query if url.query else b"")
            return h11.Request(
                method=event.method, headers=event.headers, target=target, http_version=event.http_version
            )
        return event


class Connection(H11Protocol):
    """uvicorn's protocol over `Requests`. It gives way to newer connections while it waits for its client.

    Beyond `max_connections` the one is closed that has waited longest for (the rest of) a request. Where all have
    one, the newest gets 503.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_connections: int,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = Requests()
        self._max_connections = max_connections
        self._waits_since = time.monotonic()
        self._head_timer: asyncio.TimerHandle | None = None
        self._half_closed = False

    @property
    def idle(self) -> bool:
        """Whether there is no request, or the answer to the last one is sent."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn."""
        return self.idle or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._start_head_timer()
        if len(self.connections) <= self._max_connections:
            return
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self]
        waiting = [one for one in others if one.waits and not one.transport.is_closing()]
        if waiting:
            min(waiting, key=lambda one: one._waits_since).transport.abort()
        else:
            transport.write(FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.idle and self._head_timer is None:
            self._start_head_timer()
        super().data_received(data)
        if not self.idle:
            self._stop_head_timer()

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        self._waits_since = time.monotonic()
        super().on_response_complete()
        if self._half_closed and self.idle:
            self.transport.close()
        elif self.idle and self.conn.trailing_data[0]:  # the next head has begun
            self._start_head_timer()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client will send no more. If a whole request is being answered, it gets its answer."""
        if self.waits or self.scheme == "https" or self.scope["http_version"] != "1.1":
            return None
        self._half_closed = True
        self._probe(0)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def _probe(self, times: int) -> None:
        """Write what means nothing: a client that is gone is noticed by it, and its request cancelled."""
        if self.idle or self.transport.is_closing():
            return
        comment = self.scope["state"].get(COMMENT)
        if not self.cycle.response_started:
            event = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(event) or b"")
        elif comment is not None:
            self.transport.write(self.conn.send(h11.Data(data=comment)) or b"")
        seconds = PROBE_SECONDS[min(times + 1, len(PROBE_SECONDS) - 1)]
        self.loop.call_later(seconds, self._probe, times + 1)

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self.idle and not self.transport.is_closing():
            self.transport.close()


def allowed_connections(wanted: int) -> int:
    """`wanted`, or fewer where the process may not have as many files; raises its soft limit if it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > WANTED_FILES:
        hard = max(soft, WANTED_FILES)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    allowed = max(1, min(wanted, hard - RESERVED_FILES))
    if allowed < wanted:
        logger.warning("up to %d connections, for want of file descriptors (ulimit -n)", allowed)
    return allowed


class LoopErrors:
    """The event loop's exception handler: running out of descriptors is a line a minute, not a traceback a try."""

    def __init__(self) -> None:
        self._said = -float("inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in EXHAUSTED or "socket" not in context:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            logger.warning(
                "cannot accept connections: %s. Raise LimitNOFILE or lower --max-connections", error
            )
