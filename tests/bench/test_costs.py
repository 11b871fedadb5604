"""Meters, arrival times, and figures from rows."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from support.scripted import scripted_artifact

from pangu_bench import memory
from pangu_bench.costs import measure_running, running_figures, spread
from pangu_bench.latency import EndpointTokenizer, Prompts, gaps, timed_request, tokenizer_of
from pangu_bench.memory import Meters, Peak
from pangu_bench.options import CostOptions
from pangu_bench.rows import RowFile
from pangu_training.asking.endpoint import Endpoint, ServedError

MEGABYTE = 1 << 20
GROW = "input(); x = b'x' * (64 << 20); print(flush=True); input()"


def test_the_peak_is_of_the_process_and_of_the_time_watched() -> None:
    meters = Meters()
    command = [sys.executable, "-c", GROW]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        with Peak(meters, process.pid) as before:
            pass
        process.stdin.write(b"grow\n")
        process.stdin.flush()
        process.stdout.readline()
        with Peak(meters, process.pid) as after:
            pass
        process.stdin.write(b"end\n")
    for meter in ("pss", "rss"):
        assert 0 < before.sizes[meter] < 64 * MEGABYTE < after.sizes[meter]


def test_a_process_that_ends_while_it_is_watched_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process, Peak(Meters(), process.pid):
        process.wait()


@pytest.mark.parametrize("named", [True, False], ids=["processes are told apart", "they are not"])
def test_gpu_memory_is_the_process_where_the_driver_tells(
    named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [100]

    def processes(_: object) -> list[SimpleNamespace]:
        own = SimpleNamespace(pid=process.pid, usedGpuMemory=30 if named else None)
        return [SimpleNamespace(pid=1, usedGpuMemory=50), own]

    driver = SimpleNamespace(
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=used[0]),
        nvmlDeviceGetComputeRunningProcesses=processes,
    )
    monkeypatch.setattr(memory, "open_nvml", lambda: driver)
    with subprocess.Popen(["sleep", "60"]) as process:
        meters = Meters()
        used[0] = 140
        sizes = meters.read(process.pid)
        process.kill()
    assert sizes["nvml_device"] == 40
    assert sizes.get("nvml") == (30 if named else None)


def test_times_of_tokens_from_times_of_events() -> None:
    # an event of two tokens, one that repeats a count (the finish reason), and one before any token
    arrivals = [(0.5, 0), (1.0, 1), (1.2, 2), (1.6, 4), (1.9, 5), (2.5, 5)]
    ttft_seconds, itl_seconds = gaps(arrivals)
    assert ttft_seconds == 1.0
    assert itl_seconds == pytest.approx((0.2, 0.2, 0.2, 0.3))
    assert sum(itl_seconds) == pytest.approx(1.9 - 1.0), "TPOT is (last - first) / (tokens - 1)"
    assert gaps([(1.0, 3), (1.5, 4)]) == (1.0, (0.5,)), "nobody knows when tokens without text came"


def test_every_prompt_has_its_length_and_a_beginning_of_its_own(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(scripted_artifact(tmp_path))
    runs = [Prompts(tokenizer), Prompts(tokenizer)]
    made = [prompts.prompt(300) for prompts in runs for _ in range(3)]
    assert {len(prompt) for prompt in made} == {300}
    assert len({tuple(prompt[:64]) for prompt in made}) == 6, "a server could reuse what it has computed"
    assert len(runs[0].prompt(1_000_000)) == 1_000_000, "longer than the code is"


def test_the_spread_of_a_few_values() -> None:
    assert spread([3, 1, 2, 10]) == {"min": 1, "median": 2.5, "p95": 10, "max": 10}
    many = spread(list(range(1, 101)))
    assert many is not None
    assert many["p95"] == 95


class LlamaLike(BaseHTTPRequestHandler):
    """Answers as llama.cpp does: a token an event, counted at the end only; `asked` are the prompts."""

    events: tuple[str, ...] = ("a", "b", "c")
    asked: list[list[int]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            special = [1] if body["add_special"] else []
            self.send(json.dumps({"tokens": special + list(body["content"].encode())}))
            return
        self.asked.append(body["prompt"])
        chunks = [{"choices": [{"text": text}]} for text in (*self.events, "")]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        lines = [json.dumps(chunk) for chunk in (*chunks, {"choices": [], "usage": usage})]
        self.send("".join(f"data: {line}\n\n" for line in lines) + "data: [DONE]\n\n")

    def send(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def llama_like(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(LlamaLike, "asked", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), LlamaLike) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Endpoint(base_url=f"http://127.0.0.1:{server.server_port}", model="llama", card={})
        server.shutdown()
        thread.join()


def test_a_server_of_another_kind_is_timed_with_prompts_of_exact_lengths(
    llama_like: Endpoint, tmp_path: Path
) -> None:
    options = CostOptions(context=64, prompt_tokens=(8, 200), new_tokens=3, warmup=1, repeats=2)
    with RowFile(tmp_path / "rows", {}) as rows:
        asyncio.run(measure_running(rows, llama_like, options))
        figures = running_figures(rows, llama_like)
    assert [len(prompt) for prompt in LlamaLike.asked] == [8] * 3 + [200] * 3
    assert {prompt[0] for prompt in LlamaLike.asked} == {1}, "what the tokenizer puts before a text"
    latency = figures["latency"]
    assert [(one["prompt_tokens"], one["new_tokens"], one["requests"]) for one in latency] == [
        (8, 3, 2),
        (200, 3, 2),
    ]
    assert [one["bandwidth_share"] for one in latency] == [None, None]
    assert figures["load_seconds"] is figures["memory"]["generating_bytes"] is None


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (("ab", "c"), "3 tokens came in 2 events that do not count them"),
        (("a", "b", "c", "d"), "3 tokens were asked for, 4 came"),
    ],
)
def test_events_that_do_not_tell_their_tokens_are_not_timed(
    llama_like: Endpoint, monkeypatch: pytest.MonkeyPatch, events: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(LlamaLike, "events", events)

    async def ask() -> None:
        async with httpx.AsyncClient(**llama_like.client_options()) as client:
            await timed_request(client, llama_like.model, [1, 2], 3)

    with pytest.raises(ServedError, match=words):
        asyncio.run(ask())


def test_without_a_tokenizer_there_is_no_prompt_of_known_length() -> None:
    nothing = Endpoint(base_url="http://127.0.0.1:9", model="none", card={})
    with pytest.raises(ServedError, match="has no /tokenize"):
        EndpointTokenizer(nothing).encode("text")
