"""What a server says when it is ready, and how its compute threads are chosen and wait."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import Artifacts
from support.process import COMMAND
from support.scripted import END
from support.served import Server

from pangu_server import serving
from pangu_server.backends.seam import BackendInfo
from pangu_server.listening import listen
from pangu_server.options import ServeOptions
from pangu_server.serving import announce, load_options, threads_in_words


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, lambda _: [END])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


def options(**changes: Any) -> ServeOptions:
    return ServeOptions(artifact=Path("artifact"), **changes)


def said(server: Server, info: BackendInfo, capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    """The lines without the address."""
    server.backend.info = info
    with listen("127.0.0.1", 0) as listener:
        announce(server.engine, listener, options(**changes))
    return [re.sub(r"http://127.0.0.1:\d+", "ADDRESS", line) for line in capsys.readouterr().out.splitlines()]


def test_the_first_line_says_what_computes_and_why(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    info = replace(
        server.backend.info,
        name="transformers",
        compute_type="bfloat16",
        kernel="int8 GEMV",
        why="it measures best on this CPU",
        threads=3,
        weight_bytes=1_500_000_000,
    )
    first, curl = said(server, info, capsys, threads=3)
    assert first == (
        "scripted ready on ADDRESS: torch engine (it measures best on this CPU): transformers, bfloat16, "
        "kernel int8 GEMV on cpu with 3 threads (--threads), 1.500 GB of weights"
    )
    assert curl.startswith("curl -s ADDRESS/v1/completions ")


def test_what_is_not_known_is_not_said(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "usable_cores", lambda: 2)
    first, _ = said(server, server.backend.info, capsys)
    assert first == (
        "scripted ready on ADDRESS: torch engine: scripted, none on cpu with "
        "1 thread (of 2 cores one is left to other programs), 0.000 GB of weights"
    )


def test_a_cache_size_that_nobody_reads_is_said(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    library = replace(server.backend.info, engine="ctranslate2", caution="be careful")
    assert len(said(server, server.backend.info, capsys, cache_bytes=1)) == 2
    assert len(said(server, library, capsys)) == 3
    named = replace(library, name="ctranslate2", compute_type="int8_float32")
    assert "ctranslate2 engine: int8_float32 on cpu" in said(server, named, capsys)[0]
    assert said(server, library, capsys, cache_bytes=1)[2:] == [
        "caution: be careful",
        "caution: --cache-memory has no effect: CTranslate2's library sizes its cache itself",
    ]


def test_threads_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_in_words(1, asked=True) == "1 thread (--threads)"
    monkeypatch.setattr(serving, "usable_cores", lambda: 1)
    assert threads_in_words(1, asked=False) == "1 thread (one core)"
    monkeypatch.setattr(serving, "usable_cores", lambda: 8)
    assert threads_in_words(7, asked=False) == "7 threads (of 8 cores one is left to other programs)"


def test_the_backend_gets_what_was_asked_for(server: Server) -> None:
    given = load_options(
        options(engine="torch", threads=5, cache_bytes=7, draft="off", graphs=False), server.metrics
    )
    assert (given.engine, given.threads, given.cache_bytes, given.draft, given.graphs) == (
        *("torch", 5, 7),
        *("off", False),
    )
    given.on_batch(3)
    assert server.metric("pangu_batch_size_sum") == 3


@pytest.mark.parametrize(("policy", "waits"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_compute_threads_wait_passively_unless_told(
    artifacts: Artifacts, tmp_path: Path, policy: str | None, waits: str
) -> None:
    """OpenMP itself says what it read when the library loaded it."""
    artifact = artifacts("tiny_starcoder", "ctranslate2", "--quantization", "int8")
    environment = {**os.environ, "OMP_DISPLAY_ENV": "TRUE"}
    environment.pop("OMP_WAIT_POLICY", None)
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    log = tmp_path / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [COMMAND, artifact, "--port", "0", "--device", "cpu"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            text=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()
        process.communicate(timeout=60)
    assert "thread (" in first or "threads (" in first
    # Each engine's libraries may bring an OpenMP of their own.
    assert set(re.findall(r"OMP_WAIT_POLICY\s*=\s*'?(\w+)", log.read_text())) == {waits}
