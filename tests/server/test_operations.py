"""What comes before the engine: keys, CORS, limits of bodies, request ids, logs, flags, signals."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from support import TESTS
from support.scripted import scripted_artifact

from pangu_server.access import Access, AccessError, Keys, read_access
from pangu_server.bodies import BodyLimit
from pangu_server.cli import parser
from pangu_server.limits import Limits
from pangu_server.listening import listen
from pangu_server.logs import JsonFormatter, TextFormatter
from pangu_server.options import ServeOptions
from pangu_server.protection import protect
from pangu_server.serving import REPEAT_SECONDS, Server
from pangu_training.stage.command import parsed

KEY = "sk-horse-battery"
ORIGIN = "https://editor.example"


def small_app() -> FastAPI:
    """Routes that show what the application gets."""
    app = FastAPI()

    @app.get("/health")
    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, str]:
        return {"id": request.state.request_id}

    @app.post("/v1/completions")
    async def completions(request: Request) -> int:
        request.state.log["prompt_tokens"] = 7
        return len(await request.body())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a fault")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> Any:
            while True:
                await asyncio.sleep(0)
                yield b"x" * 65536

        return StreamingResponse(pieces())

    return app


def client(keys: Iterable[str] = (), max_body_bytes: int = 1000, **options: Any) -> TestClient:
    app = protect(small_app(), keys=Keys(lambda: Access.of(keys)), max_body_bytes=max_body_bytes, **options)
    return TestClient(app, raise_server_exceptions=False)


# ---------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer {KEY}"}, 200),
        ({"x-api-key": "other-key"}, 200),
        ({"authorization": "Basic abc", "x-api-key": KEY}, 200),  # a proxy's password, and our key
        ({"authorization": KEY}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"x-api-key": b"\xff\xfe"}, 401),
    ],
)
def test_a_key_opens_what_needs_one(headers: Any, status: int) -> None:
    answer = client([KEY, "other-key"]).get("/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.text


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/version", "/page/app.js"])
def test_probes_and_the_page_need_no_key(path: str) -> None:
    assert client([KEY]).get(path).status_code in (200, 404)


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/health/", "/pages", "/page", "/%2e/health", "/nothing"]
)
def test_everything_else_does(path: str) -> None:
    assert client([KEY]).get(path).status_code == 401


def test_without_keys_the_server_is_open() -> None:
    assert client().get("/v1/models").status_code == 200


def test_a_wrong_key_costs_no_body() -> None:
    assert client([KEY]).post("/v1/completions", content=b"x" * 2000).status_code == 401


def test_keys_come_from_a_file_and_from_the_environment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("# the team's\nfirst\n\n  second  \n")
    file.chmod(0o600)
    access = read_access(file, {"PANGU_API_KEYS": "third, fourth,"})
    assert [access.allows(key) for key in (b"first", b"second", b"third", b"fourth")] == [True] * 4
    assert not any(access.allows(key) for key in (b"", b"fifth", b"# the team's"))
    assert "first" not in repr(access)
    assert not caplog.records
    file.chmod(0o644)
    read_access(file, {})
    assert "every user of this machine can read" in caplog.text


@pytest.mark.parametrize("content", ["", "# nothing\n\n", "good\nse cret\n", "schlüssel\n"])
def test_keys_that_cannot_be_meant_stop_the_start(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(AccessError) as raised:
        read_access(file, {})
    assert "cret" not in str(raised.value)
    with pytest.raises(AccessError, match="PANGU_API_KEYS holds no API key"):
        read_access(None, {"PANGU_API_KEYS": ""})


# ---------------------------------------------------------------------------------------------- CORS


def test_other_origins_are_refused_unless_named() -> None:
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client().options("/v1/completions", headers=preflight).headers
    open_client = client([KEY], cors_origins=[ORIGIN])
    wanted = {**preflight, "access-control-request-headers": "authorization, x-stainless-os"}
    answer = open_client.options("/v1/completions", headers=wanted)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    refusal = open_client.get("/v1/models", headers={"origin": ORIGIN})
    assert refusal.status_code == 401
    assert refusal.headers["access-control-allow-origin"] == ORIGIN, "a page can read why"
    assert "x-request-id" in refusal.headers["access-control-expose-headers"]
    other = open_client.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


# ---------------------------------------------------------------------------------------------- bodies


def test_a_body_above_the_limit_is_413() -> None:
    for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
        answer = client().post("/v1/completions", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
    for content in (b"x" * 1000, iter([b"x" * 500, b"x" * 500])):
        assert client().post("/v1/completions", content=content).json() == 1000
    assert client().post("/v1/completions").json() == 0


class Running:
    """An ASGI application on a real socket."""

    def __init__(self, app: Any) -> None:
        self.listener = listen("127.0.0.1", 0)
        self.server = Server(app, 0)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def send(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(self.listener.getsockname(), timeout=30)
        connection.sendall(data)
        return connection

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def running() -> Iterator[Callable[[Any], Running]]:
    servers: list[Running] = []

    def start(app: Any) -> Running:
        servers.append(Running(app))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    data = b""
    with connection:
        while piece := connection.recv(65536):
            data += piece
    return data


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("content-length: 1000000", b""),
        ("content-length: 1000000\r\nexpect: 100-continue", b""),
        ("transfer-encoding: chunked", b"7d0\r\n" + b"x" * 2000 + b"\r\n"),  # and more was to come
    ],
)
def test_a_long_body_is_refused_before_it_is_there(
    running: Callable[[Any], Running], headers: str, body: bytes
) -> None:
    server = running(protect(small_app(), keys=Keys(Access), max_body_bytes=1000))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\n{headers}\r\n\r\n"
    answer = received(server.send(head.encode() + body))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


def test_a_body_that_does_not_come_is_408(running: Callable[[Any], Running]) -> None:
    server = running(BodyLimit(small_app(), 1000, seconds=0.2))
    connection = server.send(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf")
    answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer


def test_a_client_that_reads_nothing_is_dropped_and_holds_no_one_up(
    running: Callable[[Any], Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pangu_server.listening.STALLED_MILLISECONDS", 1000)
    caplog.set_level(logging.INFO, "pangu_server.access")
    app = protect(small_app(), keys=Keys(Access), max_body_bytes=1000, log_requests=True)
    server = running(app)
    asleep = server.send(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
    with server.send(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n") as other:
        assert received(other).startswith(b"HTTP/1.1 200 ")
    wait_for(lambda: len(caplog.records) == 2)
    lines = {line["path"]: line for line in logged(caplog)}
    assert lines["/stream"]["disconnected"] is True
    asleep.close()


# ---------------------------------------------------------------------------------------------- ids, logs


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the request log would write, read back."""
    return [json.loads(JsonFormatter().format(record)) for record in caplog.records]


@pytest.mark.parametrize("sent", ["a-1_B.2", "x" * 128, "", "x" * 129, "a b", 'a"b', "é".encode("latin-1")])
def test_a_request_has_an_id(sent: Any) -> None:
    for path in ("/v1/models", "/nothing", "/broken"):
        given = client().get(path, headers={"x-request-id": sent}).headers["x-request-id"]
        if sent in ("a-1_B.2", "x" * 128):
            assert given == sent
        else:
            assert re.fullmatch("[0-9a-f]{32}", given)
    answer = client().get("/v1/models")
    assert answer.json()["id"] == answer.headers["x-request-id"]


def test_each_request_is_a_line_that_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pangu_server.access")
    app = client([KEY], log_requests=True)
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "abc"}
    app.post("/v1/completions?key=sk-query", content=b"secret prompt", headers=headers)
    app.get("/health")
    app.get("/v1/models")
    app.get('/new%0Aline%1b[31m"', headers=headers)
    assert app.get("/broken", headers=headers).status_code == 500
    lines = logged(caplog)
    assert [line["status"] for line in lines] == [200, 401, 404, 500], "a probe that succeeds is not logged"
    first = lines[0]
    assert first["time"].endswith("Z")
    assert 0 < first["duration_seconds"] < 60
    del first["time"], first["duration_seconds"]
    assert first == {
        "level": "INFO",
        "logger": "pangu_server.access",
        "message": "request",
        "request_id": "abc",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "client": "testclient",
        "prompt_tokens": 7,
    }
    for format in (JsonFormatter(), TextFormatter()):
        text = [format.format(record) for record in caplog.records]
        assert all("\n" not in line and "\x1b" not in line for line in text)
        assert not re.search("sk-|secret", "".join(text))
    assert " path=/v1/completions status=200 " in TextFormatter().format(caplog.records[0])


def test_nothing_is_logged_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pangu_server.access")
    client().get("/v1/models")
    assert not caplog.records


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_record_keeps_its_traceback_and_its_line(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("uvicorn.error", 40, "", 0, "bad\nline %s", ("x",), sys.exc_info())
    line = formatter.format(record)
    assert "ValueError: why" in line
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["message"] == "bad\nline x"
        assert "ValueError: why" in json.loads(line)["exception"]
    else:
        assert "uvicorn.error: bad\\nline x\n" in line


# ---------------------------------------------------------------------------------------------- flags


def options(*arguments: str) -> ServeOptions:
    _, parsed_options = parsed(parser(), ["artifact", *arguments])
    assert isinstance(parsed_options, ServeOptions)
    return parsed_options


def test_flags_become_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options() == ServeOptions(artifact=Path("artifact"))
    monkeypatch.setenv("PANGU_SERVE_PORT", "9000")
    monkeypatch.setenv("PANGU_SERVE_MAX_QUEUED", "5")
    monkeypatch.setenv("PANGU_SERVE_MAX_PROMPTS", "6")
    monkeypatch.setenv("PANGU_SERVE_LOG_REQUESTS", "1")
    monkeypatch.setenv("PANGU_SERVE_SKIP_VERIFY", "false")
    monkeypatch.setenv("PANGU_SERVE_GRAPHS", "0")
    monkeypatch.setenv("PANGU_SERVE_CACHE_MEMORY", "1.5GiB")
    monkeypatch.setenv("PANGU_SERVE_ENGINE", "torch")
    monkeypatch.setenv("PANGU_SERVE_CORS_ORIGIN", f"{ORIGIN} http://localhost:3000")
    assert options(
        "--max-queued", "7", "--served-model-name", "a", "b", "--engine", "ctranslate2"
    ) == ServeOptions(
        artifact=Path("artifact"),
        port=9000,
        engine="ctranslate2",
        cache_bytes=3 << 29,
        graphs=False,
        served_model_name=("a", "b"),
        cors_origin=(ORIGIN, "http://localhost:3000"),
        log_requests=True,
        limits=Limits(max_queued=7, max_choices=6),
    )


def test_switches_and_choices_of_the_engine() -> None:
    assert options("--no-graphs", "--draft", "off", "--fim-order", "suffix-first") == ServeOptions(
        artifact=Path("artifact"), graphs=False, draft="off", fim_order="suffix-first"
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("2GB", 2_000_000_000),
        ("2 gb", 2_000_000_000),
        ("512MiB", 512 << 20),
        ("0.5KiB", 512),
        ("3Ti", 3 << 40),
        ("7b", 7),
    ],
)
def test_a_size_has_a_unit_or_is_in_bytes(text: str, size: int) -> None:
    assert options("--cache-memory", text).cache_bytes == size


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--cache-memory", "half"),
        ("--cache-memory", "2 GiBs"),
        ("--cache-memory", "0.1"),
        ("--cache-memory", "9" * 400),
        ("--cache-memory", "1e9"),
        ("--cache-memory", "0"),
        ("--engine", "vllm"),
        ("--draft", "on"),
        ("--port", "eighty"),
        ("--port", "65536"),
        ("--port", "tcp://10.0.0.1:8000"),  # what Kubernetes sets for a service named pangu-serve
        ("--max-batch", "0"),
        ("--drain-seconds", "-1"),
        ("--drain-seconds", "nan"),
        ("--log-format", "xml"),
        ("--cors-origin", f"{ORIGIN}/"),
    ],
)
def test_a_bad_value_is_named_where_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(flag, value)
    reason = capsys.readouterr().err.splitlines()[-1].split(f"argument {flag}: ")[1]
    variable = "PANGU_SERVE_" + flag[2:].replace("-", "_").upper()
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match="2"):
        options()
    assert capsys.readouterr().err.endswith(f"environment variable {variable}: {reason}\n")


def test_help_names_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        options("--help")
    shown = capsys.readouterr().out.split()
    assert {"PANGU_SERVE_API_KEY_FILE", "PANGU_SERVE_CACHE_MEMORY", "PANGU_SERVE_GRAPHS"} <= set(shown)


# ---------------------------------------------------------------------------------------------- a process


class Process:
    """`pangu-serve` over a scripted backend that is never done."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        load_seconds: float = 0,
        token_seconds: float = 0.02,
        **environment: str,
    ) -> None:
        artifact = scripted_artifact(folder).path
        script = [sys.executable, "-m", "support.serve_scripted", str(load_seconds), str(token_seconds)]
        self.process = subprocess.Popen(
            [*script, artifact, "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=TESTS,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "loading\n"
        if not load_seconds:
            found = re.search(r"ready on (\S+): ", self.process.stdout.readline())
            assert found
            self.address = found[1]

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(*flags: str, **options: Any) -> Process:
        processes.append(Process(tmp_path, *flags, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.process.kill()
        process.process.communicate()


def events(lines: Iterable[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line]


def body(max_tokens: int) -> dict[str, Any]:
    return {"prompt": "p", "max_tokens": max_tokens, "stream": True}


def test_sigterm_finishes_what_was_taken_and_takes_no_more(start: Callable[..., Process]) -> None:
    server = start()
    with (
        httpx.Client(base_url=server.address, timeout=60) as idle,
        httpx.Client(base_url=server.address, timeout=60) as busy,
    ):
        assert idle.get("/health").status_code == 200  # its connection is kept
        with busy.stream("POST", "/v1/completions", json=body(60)) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.signal()
            wait_for(lambda: refuses(server.address))
            rest = events(lines)
        assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
        assert rest[-1] == "[DONE]"
    assert server.end() == (0, "")


def test_the_drains_deadline_ends_streams_in_order(start: Callable[..., Process]) -> None:
    server = start("--drain-seconds", "0.2", "--log-requests", "--log-format", "json", token_seconds=0.5)
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body(100), timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.signal()
        rest = events(lines)
    assert json.loads(rest[-2])["choices"][0]["finish_reason"] is not None
    assert rest[-1] == "[DONE]"
    assert len(rest) < 50, "it was cut short"
    code, errors = server.end()
    assert code == 0
    [line] = map(json.loads, errors.splitlines())
    assert (line["path"], line["status"], "broken_off" in line) == ("/v1/completions", 200, False)


def test_a_second_signal_ends_it_at_once(start: Callable[..., Process]) -> None:
    server = start(token_seconds=0.5)
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body(100), timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.signal()
        server.signal()  # what `timeout` does: one stop all the same
        wait_for(lambda: refuses(server.address))
        next(lines)
        time.sleep(REPEAT_SECONDS)
        server.signal()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert server.end() == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_does_not_wait_for_the_model(
    start: Callable[..., Process], number: int
) -> None:
    server = start(load_seconds=300)
    server.signal(number)
    assert server.end() == (0, "")


def test_an_open_server_beyond_this_machine_warns(start: Callable[..., Process]) -> None:
    server = start("--host", "0.0.0.0")
    server.signal()
    code, errors = server.end()
    assert code == 0
    assert "answers everyone who reaches it" in errors
    assert errors.count("\n") == 1


def test_keys_from_the_environment_close_it(start: Callable[..., Process]) -> None:
    server = start("--host", "0.0.0.0", PANGU_API_KEYS=KEY, PANGU_SERVE_MAX_BODY_BYTES="100")
    with httpx.Client(base_url=server.address, timeout=60) as http:
        assert http.get("/v1/models").status_code == 401
        assert http.get("/ready").status_code == 200
        http.headers["x-api-key"] = KEY
        assert http.get("/v1/models").status_code == 200
        assert http.post("/v1/completions", content=b"x" * 101).status_code == 413
    server.signal()
    assert server.end() == (0, "")


def refuses(address: str) -> bool:
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) != 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_a_small_answer_does_not_wait_for_an_ack() -> None:
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
