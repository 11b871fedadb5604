"""The socket that the server answers on."""

import contextlib
import errno
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from pangu_training.stage.errors import PanguError

STALLED_MILLISECONDS = 60_000
BACKLOG = 2048


class ServeError(PanguError):
    """The server cannot start on this machine."""


@contextlib.contextmanager
def listening(host: str, port: int, path: Path | None) -> Iterator[socket.socket]:
    """The socket at `path`, which is gone afterwards; without one, that on `host` and `port`. See `listen`."""
    with listen(host, port) if path is None else listen_unix(path) as listener:
        try:
            yield listener
        finally:
            forget(path)


def forget(path: Path | None) -> None:
    """Remove a Unix socket's file."""
    if path is not None:
        path.unlink(missing_ok=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port`; `::` is every address, of IPv4 too.

    Raises:
        ServeError: it is taken, or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
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


def listen_unix(path: Path) -> socket.socket:
    """A Unix socket at `path`, which its user and group may use. One that nobody listens on any more is replaced.

    Raises:
        ServeError: something else is there, or it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket() and _is_deserted(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServeError(
            f"cannot listen on {path} ({error.strerror or error}): choose another --uds"
        ) from None
    return listener


def _is_deserted(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == errno.ECONNREFUSED


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    if listener.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket, scheme: str = "http") -> str:
    """`http://HOST:PORT`; for a Unix socket, whose path clients name besides, `http://localhost`."""
    if listener.family == socket.AF_UNIX:
        return f"{scheme}://localhost"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def check_certificate(certificate: Path, key: Path | None) -> None:
    """Raise `ServeError` for a certificate and key that TLS cannot use."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ServeError(f"--ssl-certfile {certificate} cannot be used ({error})") from None
