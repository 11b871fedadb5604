"""A server that was killed in any step leaves nothing behind that hurts the next one."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.commands import Artifacts
from support.process import COMMAND, Server

PROMPT = "def add(a, b):"
LONG = PROMPT * 25


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the servers of this module: the compiled kernels of other tests are not in it."""
    with pytest.MonkeyPatch.context() as environment:
        folder = tmp_path_factory.mktemp("home")
        environment.setenv("PANGU_HOME", str(folder))
        yield folder


def complete(server: Server, **body: object) -> str:
    body = {"model": server.model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **body}
    answer = httpx.post(f"{server.address}/v1/completions", json=body, timeout=120)
    return str(answer.json()["choices"][0]["text"])


def killed(server: Server) -> None:
    server.openai.close()
    server.process.kill()
    server.process.communicate()


def in_a_prefill(server: Server) -> None:
    body = {"prompt": LONG, "stream": True, "max_tokens": 50, "ignore_eos": True}
    with (
        pytest.raises(httpx.TransportError),
        httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=60) as stream,
    ):
        assert stream.status_code == 200, stream.read()
        killed(server)
        stream.read()


def in_a_decode(server: Server) -> None:
    body = {"prompt": PROMPT, "stream": True, "max_tokens": 150, "ignore_eos": True}
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=60) as stream:
        assert stream.status_code == 200, stream.read()
        lines = stream.iter_lines()
        assert "text" in next(lines)
        killed(server)
        with pytest.raises(httpx.TransportError):  # a cut stream is an error, never a short answer
            for line in lines:
                assert "[DONE]" not in line


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_killed_in_any_step(artifacts: Artifacts, home: Path, engine: str) -> None:
    path = artifacts("tiny_qwen2", "ctranslate2", "--quantization", "int8", "--no-smooth")
    options = ("--engine", engine)
    started = time.monotonic()
    server = Server(path, *options)
    seconds = time.monotonic() - started
    expected = complete(server)
    in_a_decode(server)
    for part in (0.6, 0.9):  # of loading, compiling, warming
        command = [str(COMMAND), str(path), "--port", "0", "--device", "cpu", "--threads", "1", *options]
        loading = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds * part)
        loading.kill()
        loading.wait()
    in_a_prefill(Server(path, *options))
    server = Server(path, *options)
    assert complete(server) == expected
    assert server.terminate() == 0
