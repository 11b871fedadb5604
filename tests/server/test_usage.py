"""What a request says it cost: cached tokens, predictions; the metrics, the log line and llama.cpp's timings agree."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.scripted import END, MIDDLE, PREFIX, SUFFIX
from support.served import Server, usage

from pangu_server.access import Access, Keys
from pangu_server.app import create_app
from pangu_server.logs import JsonFormatter
from pangu_server.protection import protect

ANSWER = "return n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}: ")
    server = Server(tmp_path, lambda _: [*ANSWER.encode(), END])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


def predicted(text: str) -> dict[str, Any]:
    return {"type": "content", "content": text}


def chat(server: Server, **body: Any) -> Any:
    return server.post("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], **body).json()


# ---------------------------------------------------------------------------------------------- the cache


def test_cached_tokens_are_in_every_usage(server: Server) -> None:
    assert server.complete(prompt="def f").json()["usage"] == usage(prompt=5, completion=9)
    assert server.complete(prompt="def g").json()["usage"] == usage(prompt=5, completion=9, cached=4)
    events, _ = server.stream(prompt="def f", stream_options={"include_usage": True})
    assert events[-1]["usage"] == usage(prompt=5, completion=9, cached=4), "the last one is computed"
    assert chat(server)["usage"] == usage(prompt=4, completion=9)
    messages = [{"role": "user", "content": "hi"}]
    options = {"include_usage": True, "continuous_usage_stats": True}
    events, _ = server.stream("/v1/chat/completions", messages=messages, stream_options=options)
    assert events[-1]["usage"] == usage(prompt=4, completion=9, cached=3)
    assert {event["usage"]["prompt_tokens_details"]["cached_tokens"] for event in events} == {3}


def test_choices_that_share_their_own_prompt_make_no_tokens_cached(server: Server) -> None:
    assert server.complete(prompt="abcd", n=3).json()["usage"] == usage(prompt=4, completion=27)
    answer = server.complete(prompt=["abcx", "uvw"], n=2, best_of=3).json()
    assert answer["usage"] == usage(prompt=7, completion=54, cached=3)


def test_metrics_are_the_backends_own_counts(server: Server) -> None:
    names = {
        "prefix_queries": "vllm:prefix_cache_queries_total",
        "prefix_hits": "vllm:prefix_cache_hits_total",
        "preemptions": "vllm:num_preemptions_total",
        "drafted": "vllm:spec_decode_num_draft_tokens_total",
        "accepted": "vllm:spec_decode_num_accepted_tokens_total",
    }
    for body in ({}, {"prompt": "pq"}, {"prompt": "pqr", "prediction": predicted("return m, n")}):
        server.complete(**body)
    counts = server.backend.counts()
    assert (counts.prefix_queries, counts.prefix_hits, counts.drafted, counts.accepted) == (6, 3, 9, 7)
    assert {field: server.metric(name) for field, name in names.items()} == {
        field: getattr(counts, field) for field in names
    }


def test_metrics_count_nothing_while_loading(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [END])
    assert server.metric("vllm:prefix_cache_hits_total") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_line_has_cached_tokens(
    server: Server, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO, "pangu_server.access")
    app = protect(create_app(server.engine), keys=Keys(Access), max_body_bytes=1000, log_requests=True)
    client = TestClient(app)
    for prompt in ("def f", "def g"):
        client.post("/v1/completions", json={"prompt": prompt, "stream": stream})
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [(line["prompt_tokens"], line["cached_tokens"]) for line in lines] == [(5, 0), (5, 4)]


def test_llama_cpps_form_tells_what_was_computed(server: Server) -> None:
    body = {"input_prefix": "def f(n):\n    ", "input_suffix": "\n", "n_predict": 20}
    first = server.post("/infill", **body).json()
    prompt = len([PREFIX, *b"def f(n):\n    ", SUFFIX, *b"\n", MIDDLE])
    assert (first["tokens_evaluated"], first["tokens_cached"]) == (prompt, 0)
    assert (first["timings"]["cache_n"], first["timings"]["prompt_n"]) == (0, prompt)
    assert "draft_n" not in first["timings"]
    second = server.post("/infill", **body, prediction=predicted("return m")).json()
    assert (second["tokens_evaluated"], second["tokens_cached"]) == (prompt, prompt - 1)
    assert (second["timings"]["cache_n"], second["timings"]["prompt_n"]) == (prompt - 1, 1)
    assert (second["timings"]["draft_n"], second["timings"]["draft_n_accepted"]) == (8, 7)


# ---------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("content", ["return x", [{"type": "text", "text": p} for p in ("retu", "rn x")]])
def test_a_prediction_reaches_the_backend_and_changes_no_answer(server: Server, content: Any) -> None:
    prediction = {"type": "content", "content": content}
    plain = chat(server)
    answer = chat(server, prediction=prediction)
    assert server.backend.options is not None
    assert server.backend.options.prediction == tuple(b"return x")
    assert answer["choices"] == plain["choices"]
    assert answer["usage"]["completion_tokens_details"] == {
        "accepted_prediction_tokens": 7,
        "rejected_prediction_tokens": 1,
    }
    assert answer["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
    assert "completion_tokens_details" not in plain["usage"]
    assert server.complete(prediction=prediction).json()["choices"][0]["text"] == ANSWER
    assert server.backend.options.prediction == tuple(b"return x")


def test_a_prediction_goes_with_every_choice_and_with_streams(server: Server) -> None:
    events, _ = server.stream(prediction=predicted("return n"), n=2, stream_options={"include_usage": True})
    assert events[-1]["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == 16


def test_what_was_guessed_without_a_prediction_is_told_too(server: Server) -> None:
    server.backend.guesses = b"return m"
    told = server.complete(prompt="p").json()["usage"]["completion_tokens_details"]
    assert told == {"accepted_prediction_tokens": 7, "rejected_prediction_tokens": 1}


def test_a_prediction_is_text(server: Server) -> None:
    chat(server, prediction=predicted("<|endoftext|>"))
    assert server.backend.options is not None
    assert bytes(server.backend.options.prediction) == b"<|endoftext|>"
    chat(server, prediction=predicted("<|endoftext|>"), parse_special=True)
    assert server.backend.options.prediction == (END,)


def test_a_wrong_prediction_is_told_what_it_should_be(server: Server) -> None:
    answer = server.post("/v1/chat/completions", messages=[{"role": "user"}], prediction={"type": "content"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "prediction"
    assert '{"type": "content", "content": a string or a list of text parts}' in error["message"]


def test_a_large_prediction_is_encoded_off_the_event_loop(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[int, str] = {}
    text = server.engine.encoder.text

    def watched(piece: str, **options: Any) -> list[int]:
        threads[len(piece)] = threading.current_thread().name
        return text(piece, **options)

    monkeypatch.setattr(server.engine.encoder, "text", watched)
    for length in (10, 40_000):
        server.complete(prediction=predicted("x" * length))
        chat(server, prediction=predicted("x" * (length + 1)))
        assert server.backend.options is not None
        assert len(server.backend.options.prediction) == length + 1
    assert [threads[length].startswith("aside") for length in (10, 11, 40_000, 40_001)] == [False] * 2 + [
        True
    ] * 2
