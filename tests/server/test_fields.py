"""Fields that several endpoints share: limits of prompt and answer, choices, names of the model, an early end."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.scripted import CONTEXT_LENGTH, END, MIDDLE, PREFIX, SUFFIX
from support.served import Server, wait_for

from pangu_server.limits import Limits

LONG = "abcdefghij" * (CONTEXT_LENGTH // 10)


def serve(folder: Path, answer: list[int], **options: Any) -> Server:
    server = Server(folder, lambda _: answer, **options)
    server.engine.load(server.backend)
    return server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Answers with a row of `x` that does not end."""
    server = serve(tmp_path, [ord("x")] * CONTEXT_LENGTH)
    yield server
    server.backend.gate.set()
    server.engine.close()


def seen(server: Server) -> str:
    return bytes(token_id for token_id in server.backend.prompts[-1] if token_id < 256).decode()


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        ("/v1/completions", {"prompt": "p" * 28}, "max_tokens"),
        ("/v1/fim/completions", {"prompt": "p" * 25}, "max_tokens"),
        ("/infill", {"input_prefix": "p" * 25}, "n_predict"),
    ],
)
def test_an_answer_may_take_all_that_is_left(
    tmp_path: Path, path: str, body: dict[str, Any], asked: str
) -> None:
    clamping = serve(tmp_path, [ord("x")] * CONTEXT_LENGTH, limits=Limits(clamp_max_tokens=True))
    for most in (-1, CONTEXT_LENGTH, 10**30):
        answer = clamping.post(path, **body, **{asked: most}).json()
        assert clamping.backend.options is not None
        assert clamping.backend.options.max_tokens == CONTEXT_LENGTH - 28, most
        if path == "/infill":
            assert (len(answer["content"]), answer["stop_type"]) == (100, "limit")
        else:
            assert answer["choices"][0]["finish_reason"] == "length"
    answer = clamping.post(path, **{**body, asked: 10**30, next(iter(body)): LONG * 2})
    holes = path != "/v1/completions"
    assert answer.status_code == (200 if holes else 400), (
        "a plain prompt that fills the context leaves no room"
    )
    assert not holes or len(clamping.backend.prompts[-1]) <= CONTEXT_LENGTH // 2
    clamping.engine.close()


def test_without_the_option_too_much_is_refused(server: Server) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "p", "max_tokens": CONTEXT_LENGTH}),
        ("/v1/fim/completions", {"prompt": "p", "max_tokens": CONTEXT_LENGTH}),
    ):
        answer = server.post(path, **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_several_prompts_have_each_what_is_left(server: Server) -> None:
    answer = server.complete(prompt=["a" * 100, "b" * 120], max_tokens=-1).json()
    assert [len(choice["text"]) for choice in answer["choices"]] == [28, 8]


def test_a_prompt_keeps_its_last_tokens(server: Server) -> None:
    for kept, prompt in ((3, "hij"), (-1, LONG[-28:]), (10**30, LONG)):
        most = 100 if kept < 100 else 1
        answer = server.complete(prompt=LONG, truncate_prompt_tokens=kept, max_tokens=most, echo=True)
        assert seen(server) == prompt
        assert answer.json()["choices"][0]["text"] == prompt + "x" * most, "echoed is what the model got"
    server.complete(prompt=LONG, suffix=LONG, truncate_prompt_tokens=11, max_tokens=1)
    ids = list(server.backend.prompts[-1])
    assert (ids[0], ids[-1], len(ids), SUFFIX in ids) == (PREFIX, MIDDLE, 11, True)


@pytest.mark.parametrize("stream", [False, True])
def test_several_ways_to_fill_a_hole(tmp_path: Path, stream: bool) -> None:
    answers = iter(["one", "two!"])
    server = Server(tmp_path, lambda _: [*next(answers).encode(), END])
    server.engine.load(server.backend)
    body: dict[str, Any] = {"input_prefix": "a", "n": 2, "n_predict": 9, "return_token_ids": True}
    if stream:
        events, last = server.stream("/infill", **body)
        assert '"stop":true' in last
        found = {0: "", 1: ""}
        for event in events:
            found[event["index"]] += event["content"]
        assert sum(event["stop"] for event in events) == 1, "the other one is the last event"
    else:
        rows = server.post("/infill", **body).json()
        assert [row["index"] for row in rows] == [0, 1]
        found = {row["index"]: row["content"] for row in rows}
        assert [row["tokens_predicted"] for row in rows] == [4, 5], "each has its own figures"
        assert [bytes(row["tokens"][:-1]).decode() for row in rows] == ["one", "two!"]
        assert all(row["stop"] and row["timings"]["predicted_n"] == row["tokens_predicted"] for row in rows)
    assert found == {0: "one", 1: "two!"}
    server.engine.close()


def test_files_without_names_and_holes_without_an_end_are_taken(server: Server) -> None:
    extra = [{"text": "A", "filename": None}, {"text": "B"}]
    assert server.post("/infill", input_prefix="p", input_extra=extra, n_predict=1).status_code == 200
    assert server.post("/infill", n_predict=1).status_code == 200


def test_a_hole_that_nothing_is_asked_of_reads_what_the_engine_reads(server: Server) -> None:
    answer = server.post("/infill", input_prefix="abc", n_predict=0).json()
    assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (6, 0)
    server.backend.reads = False
    answer = server.post("/infill", input_prefix="abc", n_predict=0).json()
    assert (answer["tokens_evaluated"], answer["timings"]["prompt_n"]) == (0, 0)


def test_no_seed_is_what_clients_call_minus_one(server: Server) -> None:
    server.complete(n=2, seed=-1)
    server.complete(seed=-2)
    assert server.backend.seeds == [None, None, 2**64 - 2]


def test_a_model_is_called_by_any_of_its_names(tmp_path: Path) -> None:
    server = serve(tmp_path, [END], model_names=["alias"])
    source = server.engine.artifact.manifest.source.name
    for name in ("scripted", "alias", source, "", None):
        assert server.complete(model=name).json()["model"] == (name or "scripted")
    assert server.complete(model="other").status_code == server.complete(model="*").status_code == 404
    assert server.client.get(f"/v1/models/{source}").json()["id"] == source
    server.engine.close()


def test_a_model_that_answers_to_every_name(tmp_path: Path) -> None:
    server = serve(tmp_path, [END], model_names=["*", "alias"])
    assert server.complete(model="PLACEHOLDER").json()["model"] == "PLACEHOLDER"
    assert server.client.get("/v1/models/gpt-7").json()["id"] == "gpt-7"
    body = rb'{"prompt": "p", "model": "half \ud800"}'
    broken = server.client.post("/v1/completions", content=body)
    assert (broken.status_code, broken.json()["error"]["param"]) == (400, "model")
    assert [row["id"] for row in server.client.get("/v1/models").json()["data"]] == ["scripted", "alias"]
    server.engine.close()


def test_an_adapter_is_a_model_of_its_own(tmp_path: Path) -> None:
    server = serve(tmp_path, [END], model_names=["*"], adapters=["review"])
    for model, adapter in (("review", "review"), ("scripted", None), ("any", None)):
        assert server.complete(model=model).json()["model"] == model
        assert server.backend.options is not None
        assert server.backend.options.adapter == adapter
    rows = {row["id"]: row["parent"] for row in server.client.get("/v1/models").json()["data"]}
    assert rows == {"scripted": None, "review": "scripted"}
    assert server.client.get("/v1/models/review").json()["parent"] == "scripted"
    server.engine.close()


@pytest.mark.parametrize("max_tokens", [0, 8])
def test_a_request_that_never_began_is_an_error(tmp_path: Path, max_tokens: int) -> None:
    server = serve(tmp_path, [*b"xy", END])
    server.backend.gate.clear()
    begun = threading.Event()
    wait = server.backend.gate.wait

    def first_token(timeout: float) -> bool:
        begun.set()
        return wait(timeout)

    server.backend.gate.wait = first_token  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(server.complete)
        begun.wait(30)
        queued = [
            pool.submit(server.complete, max_tokens=max_tokens),
            pool.submit(server.stream, max_tokens=max_tokens),
        ]
        wait_for(lambda: server.engine.load_count.waiting == 2)
        closing = threading.Thread(target=server.engine.close)
        closing.start()
        whole, (events, end) = queued[0].result(30), queued[1].result(30)
        server.backend.gate.set()
        closing.join()
        ended = running.result(30)
    assert (whole.status_code, whole.json()["error"]["type"]) == (503, "server_error")
    assert int(whole.headers["retry-after"]) > 0
    assert ([event["error"]["code"] for event in events], end) == (["not_ready"], "[DONE]")
    assert ended.status_code == 503, "it was running, and had no token"
    assert server.metric("vllm:request_success_total", finished_reason="abort") == 3
    assert server.metric("pangu_requests_cancelled_total", stage="queued") == 2


def test_what_shutting_down_cuts_short_says_length(tmp_path: Path) -> None:
    closing = threading.Event()

    def one_then_closed(_: Any) -> Iterator[int]:
        yield ord("x")
        threading.Thread(target=closed.engine.close).start()
        closing.wait(30)
        yield ord("y")

    closed = Server(tmp_path, one_then_closed)
    cancel = closed.backend.scheduler.cancel

    def cancelled(ticket: Any) -> None:
        cancel(ticket)
        closing.set()

    closed.backend.scheduler.cancel = cancelled  # type: ignore[method-assign]
    closed.engine.load(closed.backend)
    choice = closed.complete().json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("x", "length")
    assert closed.metric("vllm:request_success_total", finished_reason="abort") == 1


def test_a_stop_string_has_an_end(tmp_path: Path) -> None:
    server = serve(tmp_path, [*b"xy", END])
    assert server.complete(stop="x" * 1000).status_code == 200
    refused = server.complete(stop=["a", "x" * 1001])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop")
    server.engine.close()
