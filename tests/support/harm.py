"""Requests up to every limit, and what they cost a server and its other clients.

A `Victim` is `pangu-serve` over a scripted backend. A second one that nobody attacks says how busy the machine is.
"""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pangu_server.limits import Limits
from support import TESTS
from support.scripted import scripted_artifact

CONTEXT_LENGTH = 32768
MOST_BYTES = Limits().max_body_bytes
HUNG_SECONDS = 120
FINE = {200, 400, 404, 405, 408, 413, 429, 503}


class Victim:
    """A server process that is never done with an answer by itself."""

    def __init__(self, folder: Path, *flags: str, stderr: int | None = None) -> None:
        artifact = scripted_artifact(folder, context_length=CONTEXT_LENGTH).path
        self.log = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.serve_scripted", "0", "0", artifact, "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=self.log if stderr is None else stderr,
            text=True,
            cwd=TESTS,
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(2)]
        found = re.search(r"ready on http://([\d.]+):(\d+)", lines[1])
        assert found, lines
        self.address = (found[1], int(found[2]))

    def health(self) -> float:
        """Seconds that `/health` takes, on a connection of its own."""
        started = time.perf_counter()
        status, _ = self.ask("GET", "/health")
        assert status == 200
        return time.perf_counter() - started

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        client = http.client.HTTPConnection(*self.address, timeout=HUNG_SECONDS)
        with contextlib.closing(client):
            client.request(method, path, body, headers or {})
            answer = client.getresponse()
            return answer.status, answer.read()

    def behaves(self) -> bool:
        """Whether a client that asks for little is answered right, be it later."""
        deadline = time.monotonic() + HUNG_SECONDS
        while time.monotonic() < deadline:
            status, answer = self.ask("POST", "/v1/completions", b'{"prompt": "p", "max_tokens": 3}')
            if status not in (429, 503):
                return status == 200 and json.loads(answer)["choices"][0]["text"] == "xxx"
            time.sleep(0.1)
        return False

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes in memory now, or with VmHWM at most since `forget`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [found] = re.findall(rf"{name}:\s+(\d+) kB", status)
        return int(found) << 10

    def forget(self) -> None:
        """Let the peak begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def end(self) -> tuple[int, str]:
        """Stop it; exit code and stderr."""
        self.process.terminate()
        code = self.process.wait(HUNG_SECONDS)
        self.log.seek(0)
        return code, self.log.read()

    def close(self) -> None:
        """Kill it, if it still lives."""
        self.process.kill()
        self.process.communicate()
        self.log.close()


class Pulse:
    """Asks both servers for their health all the time: the longest answers since `start`."""

    def __init__(self, victim: Victim, calm: Victim) -> None:
        self.worst = self.worst_calm = 0.0
        self._victim, self._calm = victim, calm
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.worst_calm = max(self.worst_calm, self._calm.health())
            self.worst = max(self.worst, self._victim.health())

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@dataclass(frozen=True)
class Attack:
    """Bytes on a connection; after `seconds` without an end the client goes away."""

    name: str
    path: str = "/v1/completions"
    body: bytes = field(repr=False, default=b"")
    seconds: float = 1.0
    raw: bytes | None = field(repr=False, default=None)  # instead of a request
    half_closed: bool = False

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis tells of it."""
        printer.text(f"Attack({self.name}, {self.path})")

    def run(self, victim: Victim) -> int | None:
        """The status of the answer, None without any."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(self.body)}\r\n\r\n"
        )
        received = b""
        with contextlib.suppress(OSError), socket.create_connection(victim.address, HUNG_SECONDS) as client:
            client.sendall(head.encode() + self.body if self.raw is None else self.raw)
            if self.half_closed:
                client.shutdown(socket.SHUT_WR)
            client.settimeout(self.seconds)
            while piece := client.recv(1 << 16):
                received = received or piece
        lines = re.findall(rb"HTTP/1.1 ([2-5]\d\d) ", received)
        return int(lines[-1]) if lines else None


SIZES = st.sampled_from([10, 3_000, 60_000, 300_000, 1_000_000, MOST_BYTES - 500])
UNITS = [
    "a",
    " ",
    "\n",
    "\\",
    '"',
    "é",
    "😀",
    "ab ",
    "<|endoftext|>",
    "<fim_middle>",
    "def f(x):\n\treturn x\n",
]
PATHS = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/fim/completions",
    "/infill",
    "/completion",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
]
# Where a text, and where a list, can be in a body: `%s` is it.
TEXTS = {
    "/v1/completions": [
        '{"prompt":%s}',
        '{"prompt":"a","suffix":%s}',
        '{"prompt":"a","stop":%s}',
        '{"prompt":"a","prediction":{"type":"content","content":%s}}',
        '{"prompt":[%s,"b"],"echo":true}',
        '{"prompt":"a","model":%s}',
        '{"prompt":"a",%s:1}',
        '{"prompt":%s,"echo":true,"logprobs":20,"max_tokens":0}',
    ],
    "/v1/chat/completions": ['{"messages":[{"role":"user","content":%s}]}', '{"messages":[{"role":%s}]}'],
    "/v1/fim/completions": ['{"prompt":%s}', '{"prompt":"a","suffix":%s}'],
    "/infill": [
        '{"input_prefix":%s,"input_suffix":"b"}',
        '{"input_prefix":"a","input_suffix":%s}',
        '{"input_prefix":"a","input_suffix":"b","input_extra":[{"text":%s,"filename":"c"}]}',
    ],
    "/completion": ['{"prompt":%s}', '{"prompt":[1,%s,2]}'],
    "/v1/responses": ['{"input":%s}', '{"input":"a","instructions":%s}', '{"input":"a","metadata":{"b":%s}}'],
    "/tokenize": ['{"prompt":%s}', '{"content":%s,"parse_special":false}'],
    "/detokenize": ['{"tokens":%s}'],
}
LISTS = {
    "/v1/completions": [
        '{"prompt":%s}',
        '{"prompt":"a","stop":%s}',
        '{"prompt":"a","unknown":%s}',
        '{"prompt":"a","prediction":{"type":"content","content":%s}}',
        '{"prompt":[%s]}',
    ],
    "/v1/chat/completions": ['{"messages":%s}', '{"messages":[{"role":"user","content":%s}]}'],
    "/v1/fim/completions": ['{"prompt":"a","stop":%s}'],
    "/infill": ['{"input_prefix":"a","input_suffix":"b","input_extra":%s}'],
    "/completion": ['{"prompt":%s}', '{"prompt":[%s]}', '{"prompt":"a","logit_bias":%s}'],
    "/v1/responses": ['{"input":%s}', '{"input":[{"role":"user","content":%s}]}'],
    "/tokenize": ['{"prompt":%s}'],
    "/detokenize": ['{"tokens":%s}', '{"tokens":[%s]}'],
}
ENTRIES = ["{}", "[]", "7", "1.5", "-1", "null", '"a"', '"ab cd"', "[1,2]", "[[]]", "99999999999", '{"a":1}']
ENTRIES += ['{"role":"user","content":"a"}', '{"type":"text","text":"a"}', '{"text":"a","filename":"b"}']


@st.composite
def long_texts(draw: st.DrawFn) -> Attack:
    """One unit again and again, in any field that takes a text."""
    path, unit, size = draw(st.sampled_from(PATHS)), draw(st.sampled_from(UNITS)), draw(SIZES)
    form, escaped = draw(st.sampled_from(TEXTS[path])), draw(st.booleans())
    written = json.dumps(unit, ensure_ascii=escaped)[1:-1]
    text = '"' + written * (size // len(written.encode())) + '"'
    return Attack(f"{form} of {size} {unit!r}", path, (form % text).encode())


@st.composite
def long_lists(draw: st.DrawFn) -> Attack:
    """One entry again and again, in any field that takes a list."""
    path, entry, size = draw(st.sampled_from(PATHS)), draw(st.sampled_from(ENTRIES)), draw(SIZES)
    form = draw(st.sampled_from(LISTS[path]))
    text = "[" + ",".join([entry] * (size // (len(entry) + 1))) + "]"
    return Attack(f"{form} of {size} {entry}", path, (form % text).encode())


@st.composite
def objects(draw: st.DrawFn) -> Attack:
    """Many keys, deep nesting, long numbers."""
    size = draw(SIZES)
    count = size // 10
    texts = {
        "keys": '{"prompt":"a",' + ",".join(f'"k{key}":1' for key in range(count)) + "}",
        "bias": '{"prompt":"a","logit_bias":{' + ",".join(f'"{key}":1' for key in range(count)) + "}}",
        "no bias": '{"prompt":"a","logit_bias":{' + ",".join(f'"{key}":[]' for key in range(count)) + "}}",
        "deep lists": '{"prompt":' + "[" * count + "]" * count + "}",
        "deep objects": '{"prompt":"a","x":' + '{"a":' * (count // 2) + "1" + "}" * (count // 2) + "}",
        "digits": '{"prompt":"a","seed":' + "1" * count + "}",
        "decimals": '{"prompt":"a","temperature":0.' + "1" * count + "}",
        "nothing": " " * count,
        "zeros": "\0" * count,
        "open": '{"prompt":"' + "a" * count,
    }
    name = draw(st.sampled_from(sorted(texts)))
    return Attack(f"{name} of {size}", body=texts[name].encode())


@st.composite
def numbers(draw: st.DrawFn) -> Attack:
    """Numbers up to the limits and above."""
    body: dict[str, Any] = {
        "prompt": draw(st.sampled_from(["a", ["a"] * 1000, [1] * 30_000, [[7] * 200] * 900])),
        "n": draw(st.sampled_from([1, 20, 1024, 10**9])),
        "max_tokens": draw(st.sampled_from([0, 1, 2000, CONTEXT_LENGTH - 1, 10**12])),
        "logprobs": draw(st.sampled_from([None, 0, 20, 10**6])),
        "echo": draw(st.booleans()),
        "stream": draw(st.booleans()),
        "temperature": draw(st.sampled_from([0, 1])),
        "seed": draw(st.sampled_from([None, -1, 2**70])),
    }
    name = {**body, "prompt": str(body["prompt"])[:20]}
    return Attack(f"{name}", body=json.dumps(body).encode(), seconds=draw(st.sampled_from([0.1, 2.0])))


@st.composite
def connections(draw: st.DrawFn) -> Attack:
    """What is no whole request, or more than one reading of it."""
    start = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"
    body = b'{"prompt":"a","max_tokens":2}'
    length = b"content-length: %d\r\n" % len(body)
    raws = {
        "silent": b"",
        "half a head": start,
        "many headers": start + b"".join(b"h%d: a\r\n" % i for i in range(10_000)) + length + b"\r\n" + body,
        "long header": start + b"h: " + b"a" * 200_000 + b"\r\n\r\n",
        "half a body": start + b"content-length: 4000000\r\n\r\n" + b"a" * 2_000_000,
        "both lengths": start + length + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "pipelined": (start + length + b"\r\n" + body) * 200,
        "garbage": bytes(range(256)) * 1000,
        "absolute": b"GET http://a/health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    }
    name = draw(st.sampled_from(sorted(raws)))
    return Attack(
        name, raw=raws[name], half_closed=draw(st.booleans()), seconds=draw(st.sampled_from([0.1, 1.0]))
    )


ATTACKS = st.one_of(long_texts(), long_lists(), objects(), numbers(), connections())


@contextlib.contextmanager
def victims(folder: Path) -> Iterator[tuple[Victim, Victim]]:
    """One to attack and one to leave alone."""
    found = []
    try:
        for name in ("victim", "calm"):
            (folder / name).mkdir()
            found.append(Victim(folder / name))
        yield found[0], found[1]
    finally:
        for one in found:
            one.close()
