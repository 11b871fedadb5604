"""The model in this process: the endpoint's text without HTTP."""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.commands import PROMPTS, Artifacts
from support.scripted import (
    CONTEXT_LENGTH,
    END,
    MIDDLE,
    PREFIX,
    SUFFIX,
    ScriptedBackend,
    byte_tokenizer,
    scripted_artifact,
)
from support.served import wait_for
from tokenizers import Tokenizer

from pangu_convert.artifact import Artifact, ArtifactError, read_artifact
from pangu_server import load, local
from pangu_server.app import create_app
from pangu_server.backends import load_backend
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import LoadOptions
from pangu_server.encoding import read_tokenizer
from pangu_server.engine import Engine
from pangu_server.errors import ContextLengthExceeded, GenerationFailed, NotReady, RequestError
from pangu_server.local import LIMITS, Model
from pangu_server.metrics import Metrics
from pangu_training.stage.command import serving_threads

TEXT = "return n 🙂\n\n# next"


class Scripted:
    """A model that answers every prompt with `TEXT`, and its backend."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.backend = ScriptedBackend(lambda _: [*TEXT.encode(), END])
        artifact = scripted_artifact(folder)
        engine = Engine(artifact, tokenizer, Metrics("scripted"), limits=LIMITS)
        engine.load(self.backend)
        self.model = Model(engine)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    scripted = Scripted(tmp_path, byte_tokenizer())
    with scripted.model:
        yield scripted


def test_complete_returns_the_text_up_to_its_end(scripted: Scripted) -> None:
    assert scripted.model.complete("p") == TEXT
    assert scripted.backend.options is not None
    assert (scripted.backend.options.temperature, scripted.backend.options.max_tokens) == (0.0, 64)
    assert scripted.model.complete("p", max_tokens=6) == "return"
    assert scripted.model.complete("p", stop="\n\n") == "return n 🙂"
    assert scripted.model.complete("p", stop=["# next", "🙂"]) == "return n "


def test_the_pieces_of_a_stream_add_up_to_complete(scripted: Scripted) -> None:
    pieces = list(scripted.model.stream("p", stop=["next"]))
    assert "".join(pieces) == scripted.model.complete("p", stop=["next"]) == TEXT.removesuffix("next")
    assert all("\ufffd" not in piece for piece in pieces)


def test_pieces_come_as_they_are_generated(scripted: Scripted) -> None:
    read = threading.Event()

    def waits(_: Sequence[int]) -> Iterable[int]:
        yield ord("a")
        assert read.wait(30)
        yield from (ord("b"), END)

    scripted.backend.script = waits
    pieces = scripted.model.stream("p")
    assert next(pieces) == "a"
    read.set()
    assert "".join(pieces) == "b"


def test_leaving_a_stream_early_cancels_it(scripted: Scripted) -> None:
    cancelled, cancel = threading.Event(), scripted.backend.cancel

    def endless(_: Sequence[int]) -> Iterable[int]:
        yield ord("a")
        assert cancelled.wait(30)
        while True:
            yield ord("a")

    def notice(ticket: Ticket) -> None:
        cancel(ticket)
        cancelled.set()

    scripted.backend.script, scripted.backend.cancel = endless, notice
    for piece in scripted.model.stream("p", max_tokens=100):
        assert piece == "a"
        break
    scripted.backend.script = lambda _: [ord("b"), END]
    assert scripted.model.complete("p") == "b"
    assert scripted.backend.emitted.count(ord("a")) <= 2


def test_a_suffix_asks_for_the_hole(scripted: Scripted) -> None:
    assert scripted.model.complete("def f(n):\n    ", suffix="\n\nf(1)", stop="\n") == "return n 🙂"
    around = [PREFIX, *b"def f(n):\n    ", SUFFIX, *b"\n\nf(1)", MIDDLE]
    assert list(scripted.backend.prompts[-1]) == around


def test_a_suffix_needs_fim_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    plain = Tokenizer.from_str(tokenizer.to_str().replace("fim_", "nim_"))
    with Scripted(tmp_path, plain).model as model:
        with pytest.raises(RequestError, match="no fill-in-the-middle tokens"):
            model.complete("p", suffix="s")
        assert model.complete("p") == TEXT


def test_what_is_out_of_bounds_is_said_before_anything_runs(scripted: Scripted) -> None:
    with pytest.raises(RequestError, match="temperature: Input should be less than or equal to 2"):
        scripted.model.complete("p", temperature=3)
    with pytest.raises(RequestError, match="stop: 65 are given"):
        scripted.model.complete("p", stop=[str(number) for number in range(65)])
    with pytest.raises(ContextLengthExceeded):
        scripted.model.complete("p", max_tokens=CONTEXT_LENGTH)
    assert scripted.backend.prompts == []


def test_a_failure_of_the_model_is_an_error(scripted: Scripted) -> None:
    def broken(_: Sequence[int]) -> Iterable[int]:
        yield ord("a")
        raise ValueError("why")

    scripted.backend.script = broken
    with pytest.raises(GenerationFailed):
        scripted.model.complete("p")


def test_it_works_inside_a_running_event_loop(scripted: Scripted) -> None:
    async def notebook() -> str:
        return scripted.model.complete("p")

    assert asyncio.run(notebook()) == TEXT


def test_several_threads_may_ask(scripted: Scripted) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(scripted.model.complete, "abcdefgh")) == [TEXT] * 8


def test_a_closed_model_ends_what_runs_and_refuses_more(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, byte_tokenizer())
    scripted.backend.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(scripted.model.complete, "p")
        wait_for(lambda: len(scripted.backend.prompts) == 1)
        closing = threading.Thread(target=scripted.model.close)
        closing.start()
        wait_for(lambda: scripted.backend.tickets[0].cancelled)
        scripted.backend.gate.set()
        with pytest.raises(NotReady, match="shut down"):
            running.result(timeout=30)
        closing.join(timeout=30)
    scripted.model.close()
    with pytest.raises(NotReady, match="closed"):
        scripted.model.complete("p")


def test_the_parameters_of_load_are_the_servers_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[LoadOptions] = []

    def load_scripted(artifact: Artifact, options: LoadOptions) -> ScriptedBackend:
        asked.append(options)
        return ScriptedBackend(lambda _: [END])

    monkeypatch.setattr(local, "load_backend", load_scripted)
    path = scripted_artifact(tmp_path).path
    load(path).close()
    load(
        path, device="cpu", engine="torch", threads=3, max_batch=2, cache_bytes=5, draft="off", graphs=False
    ).close()
    assert [(one.engine, one.threads, one.cache_bytes, one.draft, one.graphs) for one in asked] == [
        ("auto", serving_threads(), None, "prompt", True),
        ("torch", 3, 5, "off", False),
    ]


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not an artifact"):
        load(tmp_path)


@pytest.mark.parametrize(
    "arguments", [("ctranslate2", "--quantization", "float32"), ("transformers", "--dtype", "float32")]
)
def test_greedy_text_is_the_servers(arguments: tuple[str, ...], artifacts: Artifacts) -> None:
    artifact = read_artifact(artifacts("tiny_starcoder", *arguments))
    engine = Engine(artifact, read_tokenizer(artifact), Metrics("tiny"))
    engine.load(load_backend(artifact, LoadOptions(device="cpu", threads=1)))
    client = TestClient(create_app(engine))
    with load(artifact.path, device="cpu", threads=1) as model:
        for prompt in PROMPTS:
            body = {"prompt": prompt, "max_tokens": 24, "temperature": 0}
            served = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
            assert model.complete(prompt, max_tokens=24) == served
            assert "".join(model.stream(prompt, max_tokens=24)) == served
        hole: dict[str, Any] = {"prompt": "def f(n):\n    ", "suffix": "\n\nf(1)"}
        body = {**hole, "max_tokens": 8, "temperature": 0}
        served = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert model.complete(**hole, max_tokens=8) == served
    engine.close()
