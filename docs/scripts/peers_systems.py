"""The systems that `peers.py` compares: how each one starts, is asked, sleeps and stops."""

import asyncio
import contextlib
import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from pangu_convert.download import cache_folder
from pangu_training.asking.endpoint import Endpoint, ServedError, identity, running
from pangu_training.stage.command import describe

START_SECONDS = 600
STOP_SECONDS = 60
SLOTS = 16  # of llama-server: as many clients as are ever there
SLOT_TOKENS = 4096
HERE = Path(__file__).parent


class Request(NamedTuple):
    """A greedy completion of exactly `new_tokens` tokens."""

    prompt: Sequence[int]
    new_tokens: int


class Timing(NamedTuple):
    """Seconds from a request to its first and to its last token."""

    first: float
    last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A system to be: `command` with `{port}` and `{threads}` in it; one without a port talks over its pipes."""

    name: str
    command: tuple[str, ...]

    @property
    def serves(self) -> bool:
        """Whether it is a server."""
        return any("{port}" in word for word in self.command)

    def shown(self) -> str:
        """The command without this machine's paths."""
        home = str(cache_folder())
        words = [Path(self.command[0]).name, *self.command[1:]]
        return " ".join(
            word.replace(str(HERE), "docs/scripts").replace(home, "$PANGU_HOME") for word in words
        )


def llama_server(program: Path, model: Path) -> Spec:
    """llama.cpp's server with a slot for each client; all else is its default."""
    words = f"--host 127.0.0.1 --port {{port}} -t {{threads}} -np {SLOTS} -c {SLOTS * SLOT_TOKENS}"
    named = ("-m", str(model), "--alias", model.stem)
    return Spec(name="llama-server", command=(str(program), *named, *words.split()))


def openvino(python: Path, model: Path) -> Spec:
    """OpenVINO GenAI, in the process of its worker."""
    worker = str(HERE / "openvino_worker.py")
    return Spec(name="openvino", command=(str(python), worker, str(model), "--threads", "{threads}"))


def parsed(text: str) -> Spec:
    """NAME=ARTIFACT[,FLAGS...], which pangu-serve serves, or NAME=COMMAND with `{port}` in it.

    Raises:
        ArgumentTypeError: there is no name, or no such artifact.
    """
    name, _, what = text.partition("=")
    if not name or not what:
        raise ArgumentTypeError(f"{text!r} is not NAME=ARTIFACT or NAME=COMMAND")
    if "{port}" in what:
        return Spec(name=name, command=tuple(shlex.split(what)))
    artifact, *flags = what.split(",")
    path = Path(artifact).expanduser()
    if not (path / "manifest.json").is_file():
        raise ArgumentTypeError(f"{artifact} is no artifact, and a COMMAND has {{port}} in it")
    serve = str(Path(sys.executable).with_name("pangu-serve"))
    words = ("--host", "127.0.0.1", "--port", "{port}", "--threads", "{threads}")
    return Spec(
        name=name, command=(serve, str(path), *words, *(word for flag in flags for word in shlex.split(flag)))
    )


class System:
    """A system that runs with `threads` compute threads for as long as the context lasts; its log goes to `log`.

    Between runs it is stopped by a signal, so that it takes nothing of the machine from the one that is measured.

    Raises:
        ServedError: it does not start.
    """

    def __init__(self, spec: Spec, threads: int, log: Path) -> None:
        self._spec, self._log = spec, log
        self.port = _free_port() if spec.serves else 0
        self._command = [
            word.replace("{port}", str(self.port)).replace("{threads}", str(threads)) for word in spec.command
        ]
        self.identity: dict[str, Any] = {}

    def __enter__(self) -> Self:
        own = ("PANGU_SERVE_", "PANGU_API_KEYS", "LLAMA_ARG_")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log if self._spec.serves else subprocess.PIPE,
                stderr=log,
                text=True,
                env={name: value for name, value in os.environ.items() if not name.startswith(own)},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._signal(signal.SIGSTOP)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)

    def run(self, requests: Sequence[Request], clients: int) -> tuple[float, list[Timing]]:
        """The seconds that all took, and each one's times, in a closed loop of `clients`."""
        self._signal(signal.SIGCONT)
        try:
            if self._spec.serves:
                return asyncio.run(_asked(self._endpoint, requests, clients))
            answer = self._told({"clients": clients, "requests": requests})
            return answer["seconds"], [Timing(*pair) for pair in answer["requests"]]
        finally:
            self._signal(signal.SIGSTOP)

    def _wait(self) -> None:
        """Until it answers."""
        if not self._spec.serves:
            self.identity = self._told(None)
            return
        address = f"http://127.0.0.1:{self.port}"
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._endpoint = running(address)
                asyncio.run(_asked(self._endpoint, [Request([1], 1)], 1))
                self._endpoint = running(address)  # a server may not know what runs before it has answered
                self.identity = identity(self._endpoint)
                return
            except (ServedError, httpx.HTTPError) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise ServedError(f"it does not start ({describe(error)}), see {self._log}") from None
            time.sleep(0.2)

    def _told(self, question: dict[str, Any] | None) -> dict[str, Any]:
        """A line to the worker, a line from it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if question is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ServedError(f"it is gone, see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


async def _asked(endpoint: Endpoint, requests: Sequence[Request], clients: int) -> tuple[float, list[Timing]]:
    timings: dict[int, Timing] = {}
    waiting = iter(enumerate(requests))
    # A connection a request: llama-server closes one that is kept, at times just when the next request is sent.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(**endpoint.client_options(), limits=limits) as client:

        async def one_client() -> None:
            for index, request in waiting:
                timings[index] = await _timed(client, endpoint.model, request)

        started = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(clients)))
        seconds = time.perf_counter() - started
    return seconds, [timings[index] for index in range(len(requests))]


async def _timed(client: httpx.AsyncClient, model: str, request: Request) -> Timing:
    # pangu-bench's own way wants each event's tokens counted, or text of each token: llama-server has neither.
    body = {
        "model": model,
        "prompt": request.prompt,
        "max_tokens": request.new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": True,  # llama-server's name; what it does by itself
    }
    first, last, tokens = 0.0, 0.0, 0
    started = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if not response.is_success:
            raise ServedError(f"{response.status_code}: {(await response.aread()).decode()[:200]}")
        async for line in response.aiter_lines():
            at = time.perf_counter() - started
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ServedError(f"{model} failed: {event['error']}")
            if event["choices"]:
                last = at
                if event["choices"][0]["text"]:
                    first = first or at
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if tokens != request.new_tokens:
        raise ServedError(f"{model}: {request.new_tokens} tokens were asked for, {tokens} came")
    return Timing(first or last, last)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; one that sleeps would not notice SIGTERM


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
