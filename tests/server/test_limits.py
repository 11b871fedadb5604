"""What is refused before it costs anything, and what a silent stream sends."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from support.scripted import CONTEXT_LENGTH, END, byte_tokenizer
from support.served import Server

from pangu_server.backends.seam import SamplingOptions
from pangu_server.cost import memory_bytes
from pangu_server.encoding import Encoder
from pangu_server.errors import ContextLengthExceeded, RequestError
from pangu_server.limits import Limits
from pangu_server.parsing import MOST_VALUES, parse
from pangu_server.protocol import base, chat, completion, llama, responses, service
from pangu_server.protocol.completion import CompletionRequest


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, lambda _: iter(b"abc" * 100), limits=Limits(sse_keep_alive=0.05))
    server.engine.load(server.backend)
    yield server
    server.backend.gate.set()
    server.engine.close()


def mistake(text: str) -> str:
    with pytest.raises(RequestError) as raised:
        parse(CompletionRequest, text.encode())
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the body is empty"),
        ("{", "not valid JSON (Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": "a", "seed": ' + "1" * 5000 + "}", "a number is too long"),
        ("[]", "body: Input should be"),
        ("{}", "prompt: Field required"),
        ('{"prompt": [' + ",".join(["{}"] * 1000) + "]}", "prompt: Input should be a string, a list"),
        ('{"prompt": [' + ",".join(["[]"] * MOST_VALUES) + "]}", "more than 262144 JSON values"),
        ('{"x": {' + ",".join(['"k":1'] * (MOST_VALUES // 9 + 1)) + "}}", "more than 262144 JSON values"),
        ('{"prompt": "' + ',\\"' * MOST_VALUES + '", "x": [' + "1," * MOST_VALUES + "1]}", "JSON values"),
        ("[" + ",".join(['""'] * (MOST_VALUES + 1)) + "]", "JSON values"),
    ],
)
def test_a_bad_body_ends_at_its_first_mistake(text: str, expected: str) -> None:
    assert expected in mistake(text)


def test_bodies_up_to_the_limit_are_read() -> None:
    text = ',[{:"\\' * MOST_VALUES  # in a string none of it is a value
    assert parse(CompletionRequest, json.dumps({"prompt": text}).encode()).prompt == text
    ids = [1] * (MOST_VALUES - 100)
    assert parse(CompletionRequest, json.dumps({"prompt": ids}).encode()).prompt == ids
    with pytest.raises(RequestError, match="UTF-8"):
        parse(CompletionRequest, '{"prompt": "a"}'.encode("utf-16"))


def requests() -> list[type[BaseModel]]:
    """Every model that a body is made of."""
    found: list[type[BaseModel]] = []
    left = [
        model
        for module in (base, chat, completion, llama, responses, service)
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and model.__name__.endswith("Request")
    ]
    while left:
        model = left.pop()
        if model not in found:
            found.append(model)
            left += [one for field in model.model_fields.values() for one in members(field) if is_model(one)]
    return found


def members(field: FieldInfo) -> list[Any]:
    """The types that a field's type is made of."""
    found, left = [], [field.annotation]
    while left:
        found.append(one := left.pop())
        left += get_args(one)
    return found


def is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@pytest.mark.parametrize("model", requests(), ids=lambda model: model.__name__)
def test_each_list_of_a_body_ends_at_its_first_mistake(model: type[BaseModel]) -> None:
    """A list of a million wrong entries would otherwise be a million errors: declare it as `Listed`."""

    def slow(schema: Any) -> Iterator[Any]:
        if isinstance(schema, dict):
            if schema.get("type") == "list" and not schema.get("fail_fast"):
                yield schema
            schema = list(schema.values())
        if isinstance(schema, list | tuple):
            for one in schema:
                yield from slow(one)

    assert not list(slow(model.__pydantic_core_schema__))


# ---------------------------------------------------------------------------------------------- texts


def test_a_text_that_no_context_holds_is_not_tokenized() -> None:
    encoder = Encoder(byte_tokenizer(), [END], context_length=CONTEXT_LENGTH)
    assert len(encoder.text("a" * encoder.most_characters, parse_special=True)) == encoder.most_characters
    with pytest.raises(ContextLengthExceeded, match=r"suffix holds a text of .* characters"):
        encoder.text("a" * (encoder.most_characters + 1), parse_special=False, param="suffix")
    assert Encoder(byte_tokenizer(), [END], context_length=1 << 20).most_characters == 16 << 20


def test_a_file_that_no_context_holds_is_cut_as_any_other(server: Server) -> None:
    most = server.engine.encoder.most_characters
    for path, body in {
        "/v1/fim/completions": {
            "prompt": "a" * (most + 5) + "b",
            "suffix": "c" + "d" * most,
            "max_tokens": 3,
        },
        "/infill": {
            "input_prefix": "b",
            "input_suffix": "c",
            "input_extra": [{"text": "e" * most}],
            "n_predict": 3,
        },
    }.items():
        assert server.post(path, **body).status_code == 200
        prompt = bytes(token for token in server.backend.prompts[-1] if token < 256).decode()
        assert "b" in prompt
        assert "c" in prompt
        assert "e" not in prompt


def test_a_guarded_text_is_the_same_characters() -> None:
    encoder = Encoder(byte_tokenizer(), [END])
    text = "a<|endoftext|><|endoftext|>b<fim_prefix<fim_prefix>"
    ids = encoder.text(text, parse_special=False)
    assert bytes(ids).decode() == text
    assert max(encoder.text(text, parse_special=True)) > 255


# ---------------------------------------------------------------------------------------------- memory


def test_memory_grows_with_all_that_is_asked_for() -> None:
    def cost(*lengths: int, choices: int = 1, **options: Any) -> int:
        return memory_bytes(lengths, choices, SamplingOptions(**{"max_tokens": 10, **options}))

    least = cost(10)
    more = [cost(20), cost(10, 10), cost(10, choices=2), cost(10, max_tokens=20), cost(10, logprobs=0)]
    assert all(least < one for one in [*more, cost(10, prompt_logprobs=0)])
    assert cost(10, logprobs=0) < cost(10, logprobs=20)
    budget = Limits().max_request_bytes
    assert cost(*[2000] * 64, logprobs=1, prompt_logprobs=1) < budget, "a harness scores 64 windows at once"
    assert cost(500, choices=200, max_tokens=2048) < budget, "200 samples of a problem"
    assert cost(1000, max_tokens=32_000, logprobs=20) < budget, "chat's default length, with alternatives"
    assert cost(1000, choices=1024, max_tokens=32_000) > budget


def test_a_request_that_takes_too_much_memory_is_400_and_too_many_are_429(tmp_path: Path) -> None:
    limits = Limits(max_request_bytes=200_000)
    server = Server(tmp_path, lambda _: iter(b"abc" * 100), limits=limits)
    server.engine.load(server.backend)
    answer = server.complete(n=20, max_tokens=100)
    assert answer.status_code == 400
    assert "--max-request-memory" in answer.json()["error"]["message"]
    server.backend.gate.clear()
    threads = [threading.Thread(target=server.complete, kwargs={"n": 6}) for _ in range(5)]
    for thread in threads:
        thread.start()
    while server.engine.load_count.held_bytes < 700_000:
        threading.Event().wait(0.01)
    refused = server.complete(n=6)
    server.backend.gate.set()
    for thread in threads:
        thread.join()
    assert refused.status_code == 429
    assert server.metric("pangu_requests_rejected_total", reason="memory") >= 1
    assert server.engine.load_count.held_bytes == 0
    assert server.complete(n=6).status_code == 200
    server.engine.close()


# ---------------------------------------------------------------------------------------------- what a client sends


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "application/x-www-form-urlencoded", "text/plain"]
)
def test_a_body_is_json_whatever_its_type_but_for_a_page(server: Server, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    body = b'{"prompt": "p", "max_tokens": 3}'
    answer = server.client.post("/v1/completions", content=body, headers=headers)
    assert answer.json()["choices"][0]["text"] == "abc"
    page = server.client.post("/v1/completions", content=body, headers={**headers, "origin": "http://a"})
    assert page.status_code == (200 if content_type == "application/json" else 400)
    if page.status_code == 400:
        assert "Content-Type: application/json" in page.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/version"])
def test_there_is_nothing_to_load_from_elsewhere(server: Server, path: str) -> None:
    assert server.client.get("/docs").status_code == 404
    assert server.client.get("/redoc").status_code == 404
    assert server.client.get(path).status_code == 200


def test_a_silent_stream_sends_comments(server: Server) -> None:
    server.backend.gate.clear()
    threading.Timer(0.5, server.backend.gate.set).start()
    answer = server.post("/v1/completions", prompt="p", max_tokens=3, stream=True)
    events = answer.text.split("\n\n")
    comments = events.index(next(event for event in events if event.startswith("data: ")))
    assert comments > 1
    assert set(events[:comments]) == {": keep-alive"}
    pieces = [
        json.loads(event.removeprefix("data: ")) for event in events[comments:] if event.startswith("data: {")
    ]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "abc"
    assert events[-2] == "data: [DONE]"


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_stream_that_is_not_silent_sends_none(tmp_path: Path, seconds: float) -> None:
    server = Server(tmp_path, lambda _: iter(b"abc"), limits=Limits(sse_keep_alive=seconds))
    server.engine.load(server.backend)
    answer = server.post("/v1/completions", prompt="p", max_tokens=3, stream=True)
    assert "keep-alive" not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    server.engine.close()


def test_names_of_ignored_fields_are_bounded(server: Server) -> None:
    answer = server.complete(**{"é" * 100_000: 1}, **{f"k{number}": 1 for number in range(2000)})
    assert answer.status_code == 200
    assert len(answer.headers["x-pangu-ignored-fields"]) == 1000
