"""Connections: the letter of HTTP, how many, how long they may be silent; and a log that nobody reads."""

import asyncio
import contextlib
import http.client
import logging
import os
import resource
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.harm import Victim

from pangu_server import connections
from pangu_server.access import Access, AccessError, Keys
from pangu_server.connections import Connection, LoopErrors, allowed_connections
from pangu_server.listening import ServeError, check_certificate, listen, listening
from pangu_server.logs import Lines
from pangu_server.protection import HeadAsGet
from pangu_server.serving import Server

GET = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
Start = Callable[..., "Running"]


class Running:
    """An application on a real socket: `/slow` answers when `go` is set, all else at once."""

    def __init__(self, **options: Any) -> None:
        self.go, self.cancelled = threading.Event(), threading.Event()
        self.targets: list[str] = []
        self.listener = listen("127.0.0.1", 0)
        self.server = Server(HeadAsGet(self._app), 0, **options)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.targets.append(f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}")
        while scope["path"] == "/slow" and not self.go.is_set():
            receiving = asyncio.ensure_future(receive())
            done, _ = await asyncio.wait({receiving}, timeout=0.02)
            if done and receiving.result()["type"] == "http.disconnect":
                self.cancelled.set()
                return
            receiving.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"here"})

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=60)

    def ask(self, data: bytes) -> bytes:
        with self.connect() as client:
            client.sendall(data)
            return read(client)

    def close(self) -> None:
        self.go.set()
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Running:
            running = Running(**options)
            stack.callback(running.close)
            return running

        yield start


def read(client: socket.socket) -> bytes:
    """Everything until the server closes, be it with a reset."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            data += piece
    return data


# ---------------------------------------------------------------------------------------------- HTTP


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n" + b"".join(b"h%d: a\r\n" % i for i in range(101)) + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nlong: " + b"a" * 17_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_a_head_that_is_ambiguous_or_large_is_400_and_the_end(start: Start, head: bytes) -> None:
    server = start()
    assert server.ask(head + GET).startswith(b"HTTP/1.1 400 ")
    assert not server.targets


@pytest.mark.parametrize(
    ("target", "seen"),
    [("http://a:80/health?b=1", "/health?b=1"), ("HTTPS://a", "/?"), ("/http://a/b", "/http://a/b?")],
)
def test_a_target_may_be_a_whole_url(start: Start, target: str, seen: str) -> None:
    server = start()
    server.ask(f"GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    assert server.targets == [f"GET {seen}"]


def test_head_is_get_without_a_body(start: Start) -> None:
    server = start()
    answer = server.ask(GET.replace(b"GET", b"HEAD"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")
    assert server.targets == ["GET /health?"]


def test_a_client_that_closed_its_side_is_answered(start: Start) -> None:
    server = start()
    with server.connect() as client:
        client.sendall(GET.replace(b"/health", b"/slow"))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        server.go.set()
        assert read(client).endswith(b"here")


def test_a_client_that_is_gone_cancels(start: Start) -> None:
    server = start()
    with server.connect() as client:
        client.sendall(GET.replace(b"/health", b"/slow"))
        wait_for(lambda: bool(server.targets))
    assert server.cancelled.wait(60)


# ---------------------------------------------------------------------------------------------- how many, how long


def test_beyond_the_cap_the_one_that_waits_longest_gives_way(start: Start) -> None:
    server = start(max_connections=3)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(3)]
        clients[0].sendall(GET.replace(b"/health", b"/slow"))  # at work
        clients[1].sendall(b"GET / HT")
        wait_for(lambda: len(server.server.server_state.connections) == 3 and bool(server.targets))
        assert b" 200 " in server.ask(GET)
        assert read(clients[1]) == b""
        server.go.set()
        assert read(clients[0]).endswith(b"here")


def test_where_all_are_at_work_the_newest_gets_503(start: Start) -> None:
    server = start(max_connections=2)
    with server.connect() as first, server.connect() as second:
        for client in (first, second):
            client.sendall(GET.replace(b"/health", b"/slow"))
        wait_for(lambda: len(server.targets) == 2)
        with server.connect() as third:
            assert read(third).startswith(b"HTTP/1.1 503 ")
        server.go.set()
        assert read(first).endswith(b"here")
        assert read(second).endswith(b"here")


@pytest.mark.parametrize(
    "before", [b"", b"GET / HTTP/1.1\r\nho", GET.replace(b"close", b"keep-alive") + b"GET"]
)
def test_a_head_has_its_time(start: Start, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    server = start()
    with server.connect() as client:
        client.sendall(before)
        assert read(client).count(b" 200 ") == before.count(b"keep-alive")


def test_a_request_outlives_the_time_for_its_head(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    server = start()
    with server.connect() as client:
        client.sendall(GET.replace(b"/health", b"/slow"))
        wait_for(lambda: bool(server.targets))
        time.sleep(0.3)
        server.go.set()
        assert read(client).endswith(b"here")


def test_descriptors_bound_the_connections() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(900, before[0]), before[1]))
        assert allowed_connections(500) == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 900
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_descriptors_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    handler, loop = LoopErrors(), asyncio.new_event_loop()
    context = {"message": "accept", "exception": OSError(24, "Too many open files"), "socket": None}
    for _ in range(5):
        handler(loop, context)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["cannot accept connections"]
    handler(loop, {"message": "something else"})
    assert "something else" in caplog.text
    loop.close()


# ---------------------------------------------------------------------------------------------- the log


def test_a_log_that_nobody_reads_is_dropped_and_counted() -> None:
    reader, writer = os.pipe()
    lines = Lines(writer, most=5)
    logger = logging.Logger("test")
    logger.addHandler(lines)
    for _ in range(100):
        logger.info("x" * 65536)
    assert lines.dropped >= 90
    written = b""
    while b"dropped" not in written:
        written += os.read(reader, 1 << 20)
    assert f"{lines.dropped} lines of the log were dropped".encode() in written
    lines.flush()
    os.close(reader)
    os.close(writer)


def test_a_server_whose_stderr_nobody_reads_goes_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    victim = Victim(tmp_path, "--log-requests", stderr=writer)
    os.close(writer)
    try:
        for _ in range(800):  # at 200 bytes a line more than a pipe holds
            assert victim.ask("GET", "/v1/models")[0] == 200
        victim.process.send_signal(signal.SIGTERM)
        assert victim.process.wait(60) == 0
    finally:
        victim.close()
        os.close(reader)


# ---------------------------------------------------------------------------------------------- keys


def test_keys_are_read_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    accesses: list[Access | Exception] = [Access.of(["old"])]

    def read() -> Access:
        if isinstance(accesses[-1], Exception):
            raise accesses[-1]
        return accesses[-1]

    keys = Keys(read)
    accesses.append(Access.of(["new", "old2"]))
    keys.reload()
    assert keys.access.allows(b"new")
    assert not keys.access.allows(b"old")
    for bad in (AccessError("no key"), FileNotFoundError("gone"), Access()):
        accesses.append(bad)
        keys.reload()
        assert keys.access.allows(b"new"), "what cannot be used changes nothing"
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR", "ERROR", "ERROR"]


def test_sighup_reads_the_file_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    file.chmod(0o600)
    victim = Victim(tmp_path, "--api-key-file", str(file))

    def status(key: str) -> int:
        return victim.ask("GET", "/v1/models", headers={"x-api-key": key})[0]

    try:
        assert (status("old"), status("new")) == (200, 401)
        file.write_text("new\n")
        victim.process.send_signal(signal.SIGHUP)
        wait_for(lambda: status("new") == 200)
        assert status("old") == 401
        code, errors = victim.end()
        assert code == 0
        assert "read 1 API keys again" in errors
    finally:
        victim.close()


# ---------------------------------------------------------------------------------------------- other sockets


def test_a_unix_socket_is_served_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening("unused", 0, path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept()[0].close()
        with pytest.raises(ServeError, match="in use"), listening("unused", 0, path):
            pass
    assert not path.exists()
    deserted = socket.socket(socket.AF_UNIX)
    deserted.bind(str(path))
    deserted.close()
    with listening("unused", 0, path):
        pass
    path.write_text("a file")
    with pytest.raises(ServeError, match="choose another --uds"), listening("unused", 0, path):
        pass
    assert path.read_text() == "a file"


def test_both_versions_of_ip_are_answered() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with listen("::", 0) as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()


def test_tls(start: Start, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    check_certificate(certificate, key)
    for wrong in ((certificate, None), (key, key), (tmp_path / "none", None)):
        with pytest.raises(ServeError, match="--ssl-certfile"):
            check_certificate(*wrong)
    server = start(certificate=certificate, key=key)
    context = ssl.create_default_context(cafile=str(certificate))
    client = http.client.HTTPSConnection("localhost", server.listener.getsockname()[1], context=context)
    client.request("GET", "/health")
    assert client.getresponse().read() == b"here"
    client.close()


def test_every_connection_is_ours(start: Start) -> None:
    server = start()
    with server.connect():
        wait_for(lambda: len(server.server.server_state.connections) == 1)
        assert all(isinstance(one, Connection) for one in server.server.server_state.connections)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
