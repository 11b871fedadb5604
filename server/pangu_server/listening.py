"""The socket that the server answers on."""

import ipaddress
import socket

from pangu_training.stage.errors import PanguError

STALLED_MILLISECONDS = 60_000


class ServeError(PanguError):
    """The server cannot start on this machine."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port`; `ServeError` when it is taken or not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ServeError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): choose another --port or --host"
        ) from None
    # Connections inherit both options. asyncio sets this one only on sockets whose protocol number is given,
    # and `create_server` gives none: a small answer on a reused connection would wait 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The kernel drops one whose client has read nothing of what it was sent for so
    # long, be it asleep or gone. uvicorn would hold the response, and a slot of the drain, for ever.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MILLISECONDS)
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket) -> str:
    """`http://HOST:PORT`."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
