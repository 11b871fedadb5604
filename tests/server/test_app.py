"""The application over a scripted backend: wire format, errors, admission, cancellation, metrics."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.scripted import CONTEXT_LENGTH, END
from support.served import Server, usage, wait_for

from pangu_convert.artifact import read_artifact, write_scores
from pangu_server.backends.schedule import Ticket
from pangu_server.limits import Limits

ANSWER = "    return n\n\ndef é🙂():"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, lambda _: [*ANSWER.encode(), END], limits=Limits(max_queued=2))
    server.engine.load(server.backend)
    yield server
    server.backend.gate.set()
    server.engine.close()


def test_a_completion_has_openais_form(server: Server) -> None:
    answer = server.complete(model="scripted")
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["model"] == "scripted"
    assert body["choices"] == [{"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}]
    tokens = len(ANSWER.encode()) + 1
    assert body["usage"] == usage(prompt=1, completion=tokens)


def test_max_tokens_defaults_to_16_and_ends_with_length(server: Server) -> None:
    answer = server.complete(max_tokens=None).json()
    assert answer["choices"][0] == {
        "index": 0,
        "text": ANSWER.encode()[:16].decode(),
        "logprobs": None,
        "finish_reason": "length",
    }
    assert answer["usage"]["completion_tokens"] == 16


def test_a_stream_is_the_same_text_in_whole_characters(server: Server) -> None:
    events, end = server.stream()
    assert end == "[DONE]"
    pieces = [event["choices"][0] for event in events]
    assert "".join(piece["text"] for piece in pieces) == ANSWER
    assert "é" in [piece["text"] for piece in pieces]
    assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert all(piece["text"] for piece in pieces[:-1]), "an empty piece would count as the first token"
    assert all("usage" not in event for event in events)
    assert len({event["id"] for event in events}) == 1


def test_usage_comes_last_and_alone_when_asked_for(server: Server) -> None:
    events, end = server.stream(stream_options={"include_usage": True}, max_tokens=3)
    assert end == "[DONE]"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == usage(prompt=1, completion=3)


@pytest.mark.parametrize("stop", ["\n\ndef", ["zzz", "\n\ndef"]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_the_text_and_stops_the_engine(server: Server, stop: object, stream: bool) -> None:
    if stream:
        events, _ = server.stream(stop=stop)
        text = "".join(event["choices"][0]["text"] for event in events)
        finish_reason = events[-1]["choices"][0]["finish_reason"]
    else:
        choice = server.complete(stop=stop).json()["choices"][0]
        text, finish_reason = choice["text"], choice["finish_reason"]
    assert (text, finish_reason) == ("    return n", "stop")
    assert bytes(server.backend.emitted) == b"    return n\n\ndef", "not one token more"


def test_text_held_back_for_a_stop_comes_out_at_the_end(server: Server) -> None:
    answer = server.complete(stop="\n\ndexyz", max_tokens=len("    return n\n\nde")).json()
    assert answer["choices"][0]["text"] == "    return n\n\nde"


def test_options_reach_the_backend(server: Server) -> None:
    server.complete(temperature=0.5, top_p=0.9, max_tokens=7)
    options = server.backend.options
    assert options is not None
    assert (options.temperature, options.top_p, options.max_tokens) == (0.5, 0.9, 7)
    assert options.end_token_ids == (END,)
    server.complete(top_p=0)
    assert server.backend.options is not None
    assert server.backend.options.temperature == 0, "a nucleus of nothing is greedy"


def test_token_ids_are_a_prompt_and_a_list_of_one_is_one(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda prompt_ids: prompt_ids)
    server.engine.load(server.backend)
    for prompt in ("abc", ["abc"], [97, 98, 99], [[97, 98, 99]]):
        assert server.complete(prompt=prompt).json()["choices"][0]["text"] == "abc"
    assert server.complete(prompt="").json()["usage"]["prompt_tokens"] == 1
    server.engine.close()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]] * 1025}, "prompt"),
        ({"prompt": ["a", [97]]}, "prompt"),
        ({"prompt": [261]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"stop": [str(number) for number in range(65)]}, "stop"),
        ({"stop": [None]}, "stop"),
        ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
        ({"stop_token_ids": [261]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": 7}, "stop_token_ids"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": 7}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"seed": 7.5}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 1025}, "n"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"suffix": 7}, "suffix"),
        ({"suffix": "x", "prompt": [1, 2]}, "suffix"),
        ({"suffix": "x", "max_tokens": CONTEXT_LENGTH}, "max_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"ignore_eos": "yes"}, "ignore_eos"),
        ({"logit_bias": {"foo": 1}}, "logit_bias"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"prediction": "text"}, "prediction"),
        ({"prediction": {"content": "text"}}, "prediction"),
        ({"prediction": {"type": "file", "content": "text"}}, "prediction"),
        ({"prediction": {"type": "content", "content": 7}}, "prediction"),
        ({"prediction": {"type": "content", "content": [{"type": "image_url"}]}}, "prediction"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_field(
    server: Server, body: dict[str, Any], param: str
) -> None:
    answer = server.complete(**body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]
    assert server.metric("vllm:num_requests_waiting") == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "null", '{"prompt": "\\ud800"}', "{}"])
def test_a_bad_body_is_a_400(server: Server, content: str) -> None:
    headers = {"content-type": "application/json"}
    answer = server.client.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 0, 1, 1.0),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "suffix": (None,),
    "model": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}, {"foo": 0}),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "stream_options": (None, {}, {"include_usage": False}, {"include_usage": None}),
    "seed": (None, -1),
    "stop": (None, [], "", [""]),
    "stop_token_ids": (None, []),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "return_token_ids": (None, False),
    "add_special_tokens": (None, True, False),  # this tokenizer has none
    "truncate_prompt_tokens": (None, -1, 128, 10**30),
    "prediction": (None, {"type": "content", "content": ""}),
}


def test_neutral_values_change_nothing(server: Server) -> None:
    server.complete(temperature=0)
    plain = server.backend.options
    for name, values in NEUTRAL.items():
        for value in values:
            answer = server.complete(temperature=0, **{name: value})
            assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, ANSWER), name
            assert server.backend.options == plain, name


def test_unknown_fields_are_ignored_and_named(server: Server) -> None:
    answer = server.complete(user="me", abracadabra={}, zorp=[1])
    assert answer.status_code == 200
    assert answer.headers["x-pangu-ignored-fields"] == "abracadabra,zorp"
    assert "x-pangu-ignored-fields" not in server.complete(user="me").headers
    weird = server.complete(**{"naïve\n": 1})
    assert weird.status_code == 200
    assert "\n" not in weird.headers["x-pangu-ignored-fields"]


def test_a_prompt_beyond_the_context_is_refused_with_openais_code(server: Server) -> None:
    assert server.complete(prompt="p" * 28, max_tokens=CONTEXT_LENGTH - 28).status_code == 200
    answer = server.complete(prompt="p" * 29, max_tokens=CONTEXT_LENGTH - 28)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_another_model_is_a_404(server: Server) -> None:
    answer = server.complete(model="gpt-7")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "scripted" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405)]
)
def test_other_paths_answer_in_openais_error_body(
    server: Server, method: str, path: str, status: int
) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_models_tells_what_is_served(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [END], model_names=["alias"])
    server.engine.load(server.backend)
    rows = server.client.get("/v1/models").json()["data"]
    assert [row["id"] for row in rows] == ["scripted", "alias"]
    assert rows[0]["max_model_len"] == CONTEXT_LENGTH
    what = {"backend": "scripted", "engine": "torch", "quantization": "int8", "compute_type": "none"}
    assert what.items() <= rows[0].items()
    assert rows[0]["weight_bytes"] == 10
    assert rows[0]["sha256"] == server.engine.artifact.manifest.sha256
    assert server.complete(model="alias").json()["model"] == "alias"
    server.engine.close()


def test_it_is_alive_but_not_ready_while_loading_and_draining(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [END])

    def states() -> tuple[int, int, int]:
        return (
            server.client.get("/health").status_code,
            server.client.get("/ready").status_code,
            server.complete().status_code,
        )

    assert states() == (200, 503, 503)
    assert int(server.complete().headers["retry-after"]) > 0
    assert server.client.get("/v1/models").json()["data"][0]["compute_type"] is None
    server.engine.load(server.backend)
    assert states() == (200, 200, 200)
    server.engine.drain()
    assert states() == (200, 503, 503)
    assert server.metric("pangu_requests_rejected_total", reason="loading") == 2
    assert server.metric("pangu_requests_rejected_total", reason="draining") == 1
    server.engine.close()


def test_a_full_queue_is_a_429_and_admitted_requests_finish(server: Server) -> None:
    server.backend.gate.clear()
    with ThreadPoolExecutor(max_workers=3) as pool:
        try:
            admitted = [pool.submit(server.complete)]
            wait_for(lambda: server.metric("vllm:num_requests_running") == 1)
            admitted += [pool.submit(server.complete) for _ in range(2)]
            wait_for(lambda: server.metric("vllm:num_requests_waiting") == 2)
            refused = server.complete()
        finally:
            server.backend.gate.set()
        assert [answer.result().json()["choices"][0]["text"] for answer in admitted] == [ANSWER] * 3
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_exceeded"
    assert server.metric("pangu_requests_rejected_total", reason="queue_full") == 1
    assert server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0


def failing(_: Sequence[int]) -> Iterator[int]:
    yield ord("a")
    raise ValueError("kernel fault")


def test_a_failing_backend_is_a_500_and_an_error_event_and_serves_on(tmp_path: Path) -> None:
    server = Server(tmp_path, failing)
    server.engine.load(server.backend)
    answer = server.complete()
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "kernel fault" not in answer.text
    events, end = server.stream()
    assert events[0]["choices"][0]["text"] == "a"
    assert events[-1]["error"]["type"] == "server_error"
    assert end == "[DONE]"
    assert server.metric("vllm:request_success_total", finished_reason="error") == 2
    server.backend.script = lambda _: [*b"ok", END]
    assert server.complete().json()["choices"][0]["text"] == "ok"
    server.engine.close()


def test_metrics_count_what_happened(server: Server) -> None:
    server.complete(max_tokens=5)
    server.complete(prompt="abc", stop="ret")
    assert server.metric("vllm:prompt_tokens_total") == 4
    assert server.metric("vllm:generation_tokens_total") == 5 + len("    ret")
    assert server.metric("vllm:request_success_total", finished_reason="length") == 1
    assert server.metric("vllm:request_success_total", finished_reason="stop") == 1
    assert server.metric("vllm:time_to_first_token_seconds_count") == 2
    assert server.metric("vllm:inter_token_latency_seconds_count") == 4 + len("    ret") - 1
    assert server.metric("vllm:e2e_request_latency_seconds_count") == 2
    assert server.metric("vllm:request_queue_time_seconds_count") == 2
    assert server.metric("pangu_model_weight_bytes") == 10
    what = {"backend": "scripted", "engine": "torch", "quantization": "int8", "compute_type": "none"}
    assert server.metric("pangu_model_info", **what) == 1
    text = server.client.get("/metrics").text
    assert "process_resident_memory_bytes" in text
    assert 'vllm:time_to_first_token_seconds_bucket{le="0.005"' in text


def test_a_recorded_humaneval_score_is_a_metric(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [END])
    write_scores(server.engine.artifact, {"humaneval": {"pass_at_k": {"1": 0.25}, "samples": "164x1"}})
    server.engine.artifact = read_artifact(tmp_path)
    server.engine.load(server.backend)
    assert server.metric("pangu_humaneval_pass_at_k", k="1", samples="164x1") == 0.25
    server.engine.close()


def test_two_servers_live_in_one_process(server: Server, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Server(tmp_path / "other", lambda _: [END])
    other.engine.load(other.backend)
    other.complete()
    assert other.metric("vllm:prompt_tokens_total") == 1
    assert server.metric("vllm:prompt_tokens_total") == 0
    other.engine.close()


def when_cancelled(server: Server, event: threading.Event) -> None:
    """Set `event` once the engine has cancelled a request, as it does at a deadline."""
    cancel = server.backend.cancel

    def cancel_and_set(ticket: Ticket) -> None:
        cancel(ticket)
        event.set()

    server.backend.cancel = cancel_and_set


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_ends_at_its_deadline_with_what_it_has(tmp_path: Path, stream: bool) -> None:
    over = threading.Event()

    def slow(_: Sequence[int]) -> Iterator[int]:
        yield ord("a")
        over.wait(30)
        yield ord("b")

    server = Server(tmp_path, slow, limits=Limits(max_request_seconds=1))
    server.engine.load(server.backend)
    when_cancelled(server, over)
    if stream:
        events, end = server.stream()
        text = "".join(event["choices"][0]["text"] for event in events)
        assert (events[-1]["choices"][0]["finish_reason"], end) == ("length", "[DONE]")
    else:
        choice = server.complete().json()["choices"][0]
        text = choice["text"]
        assert choice["finish_reason"] == "length"
    assert text == "a"
    assert server.metric("pangu_requests_cancelled_total", stage="deadline") == 1
    server.engine.close()


def test_a_deadline_before_the_first_token_is_a_503(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [END], limits=Limits(max_request_seconds=0.2))
    server.engine.load(server.backend)
    server.backend.gate.clear()
    when_cancelled(server, server.backend.gate)
    answer = server.complete()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline_exceeded")
    assert int(answer.headers["retry-after"]) > 0
    server.engine.close()
