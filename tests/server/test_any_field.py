"""Whatever a client writes into any field of any endpoint that generates, it gets an answer that the docs promise.

The endpoints and their fields are read from the application: a new one is tried without being named here. Run longer
with PANGU_TEST_EXAMPLES=5000.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import EXAMPLES
from support.scripted import CONTEXT_LENGTH, END, SPECIAL, VOCABULARY_SIZE
from support.served import Server, wait_for

from pangu_convert.chat_template import ChatTemplates
from pangu_server.chat import ChatTemplate
from pangu_server.limits import Limits

ERRORS = {400: "invalid_request_error", 404: "invalid_request_error", 503: "server_error"}
# Text with halves of characters, names of special tokens, ends of lines.
ANSWER = [*b"def f():\n  return 1", 0xF0, 260, *"é😀".encode(), 0xC3, END, *b" # and on\n"]
TEMPLATE = "{% for m in messages %}<fim_prefix>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}<fim_middle>"

TEXTS = st.sampled_from(["", "x", "def f():\n", "é😀", *SPECIAL, "\x00", "\n", "*"])
NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 7, 16, 0.5, 1.0, 2.0, -0.0, 1e-9, -2, 10**6]) | st.sampled_from(
    [CONTEXT_LENGTH, 2**31, 2**53, 2**63, 2**64 - 1, -(2**63), 10**30, 1e300, math.inf, -math.inf, math.nan]
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS | st.sampled_from(["\ud800", "a" * 300])
NAMES = TEXTS | st.sampled_from(
    ["type", "text", "content", "role", "include_usage", "filename", "5", "-1", "\ud800"]
)
ODD = SCALARS | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
IDS = st.integers(0, VOCABULARY_SIZE - 1)
BIAS = st.dictionaries(st.sampled_from(["0", "97", "260", "256"]), st.floats(-100, 100), max_size=3)
# What a client means, by field; any other field gets values of its schema's type.
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["scripted", "", "scripted-checkpoint", "alias"]),
    "n_probs": st.integers(0, 20),
    "prompt": TEXTS | st.lists(IDS, min_size=1, max_size=5) | st.lists(TEXTS, min_size=1, max_size=3),
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS}), min_size=1, max_size=2
    ),
    "temperature": st.sampled_from([0, 0.0, 0.2, 1, 2]),
    "top_p": st.sampled_from([0, 0.5, 1]),
    "min_p": st.sampled_from([0, 0.5, 1]),
    "top_k": st.sampled_from([-1, 0, 1, 40]),
    "n": st.integers(1, 3),
    "best_of": st.integers(0, 4),
    "max_tokens": st.integers(-1, 60),
    "max_output_tokens": st.integers(-1, 60),
    "input": TEXTS,
    "metadata": st.dictionaries(NAMES, TEXTS, max_size=2),
    "max_completion_tokens": st.integers(-1, 60),
    "n_predict": st.integers(-1, 60),
    "logprobs": st.integers(0, 20) | st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "stop": TEXTS | st.lists(TEXTS, max_size=4),
    "stop_token_ids": st.lists(IDS, max_size=3),
    "truncate_prompt_tokens": st.integers(-1, 20),
    "seed": st.integers(-1, 3),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 100),
    "logit_bias": BIAS,
    "min_tokens": st.integers(0, 60),
    "prediction": st.fixed_dictionaries({"type": st.just("content"), "content": TEXTS}),
    "stream_options": st.dictionaries(
        st.sampled_from(["include_usage", "continuous_usage_stats"]), st.booleans() | st.none(), max_size=2
    ),
    "input_extra": st.lists(
        st.fixed_dictionaries({"text": TEXTS, "filename": TEXTS | st.none()}), max_size=2
    ),
}
LENGTHS = ("max_tokens", "n_predict")  # their defaults may not fit this short context
UNKNOWN = ("zorp\ud800", "user", "tools", "response_format")
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "integer": st.integers(-1, 9),
    "number": st.floats(0, 1),
    "string": TEXTS,
    "null": st.none(),
}


def generating(server: Server) -> dict[str, dict[str, Any]]:
    """Path -> schema of the body of each endpoint that generates, as clients can read it."""
    api = server.client.get("/openapi.json").json()
    found = {}
    for path, methods in api["paths"].items():
        if body := methods.get("post", {}).get("requestBody"):
            name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
            schema = api["components"]["schemas"][name]
            if "temperature" in schema["properties"]:
                found[path] = schema
    return found


def bodies(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """What a client means, with mostly no, one or two fields that nobody means."""
    usual = {}
    for name, field in schema["properties"].items():
        kinds = {kind.get("type", "null") for kind in field.get("anyOf", [field])}
        by_type = st.one_of(*(BY_TYPE.get(kind, st.none()) for kind in sorted(kinds)))
        usual[name] = SENSIBLE.get(name, by_type)
    always = {name: usual[name] for name in (*schema.get("required", []), *LENGTHS) if name in usual}
    meant = st.lists(st.sampled_from(sorted(usual)), max_size=7, unique=True)
    odd = st.lists(st.sampled_from(sorted([*usual, *UNKNOWN])), max_size=2, unique=True)
    return st.tuples(meant, st.just([]) | odd).flatmap(
        lambda names: st.fixed_dictionaries(
            {**always, **{name: usual[name] for name in names[0]}, **dict.fromkeys(names[1], ODD)}
        )
    )


@pytest.fixture(scope="module", params=[False, True], ids=["strict", "clamping"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = Limits(max_choices=8, clamp_max_tokens=request.param)
    folder = tmp_path_factory.mktemp("any")
    server = Server(folder, lambda _: [*ANSWER, *b"x" * CONTEXT_LENGTH], limits=limits, model_names=["alias"])
    server.engine.chat = ChatTemplate(ChatTemplates(sources={"default": TEMPLATE}, special_tokens={}))
    server.engine.load(server.backend)
    yield server
    server.engine.close()


@pytest.fixture(scope="module")
def strategies(server: Server) -> dict[str, st.SearchStrategy[dict[str, Any]]]:
    return {path: bodies(schema) for path, schema in generating(server).items()}


LLAMAS = ("/infill", "/completion")
RESPONSES = "/v1/responses"
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/fim/completions", RESPONSES, *LLAMAS)


def test_every_endpoint_that_generates_is_tried(server: Server) -> None:
    assert set(generating(server)) >= set(PATHS)


@pytest.mark.parametrize("server", [False], indirect=True, ids=["strict"])
@pytest.mark.parametrize("path", PATHS)
def test_every_field_takes_its_neutral_value_and_survives_others(server: Server, path: str) -> None:
    schema = generating(server)[path]
    usual = {
        "prompt": "x",
        "input": "x",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 4,
        "n_predict": 4,
    }
    body = {name: value for name, value in usual.items() if name in schema["properties"]}
    for name in schema["properties"]:
        for value in (None, 2, 10**30, ""):
            answer = post(server, path, {**body, name: value})
            needed = name in (*schema.get("required", []), *LENGTHS)  # the default length does not fit
            assert answer.status_code == 200 or value is not None or needed, name
            check_answer(answer, path)


@settings(max_examples=EXAMPLES * 2, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_an_answer_is_what_the_docs_promise(
    server: Server, strategies: dict[str, st.SearchStrategy[dict[str, Any]]], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted(strategies)))
    body = data.draw(strategies[path])
    answer = post(server, path, body)
    hypothesis.event(f"{path} {answer.status_code}")
    check_answer(answer, path)
    wait_for(lambda: server.engine.load_count.running == server.engine.load_count.waiting == 0)


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    """As JSON of any kind, NaN and halves of surrogate pairs too."""
    return server.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


def check_answer(answer: Any, path: str) -> None:
    """It is one of those that the docs know, in their form."""
    if answer.status_code != 200:
        assert answer.status_code in ERRORS, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ERRORS[answer.status_code]
        assert error["message"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
        if path == RESPONSES:
            check_events([event.partition("\ndata: ") for event in events])
            return
        if path not in LLAMAS:
            assert events.pop() == "[DONE]"
        check([json.loads(event) for event in events], path)
    else:
        whole = answer.json()
        if path == RESPONSES:
            check_response(whole)
            return
        check(whole if isinstance(whole, list) else [whole], path)


def check_events(events: list[tuple[str, str, str]]) -> None:
    """They are numbered and named, and their pieces are the text of the response that comes last."""
    told = [json.loads(data) for _, _, data in events]
    assert [name for name, _, _ in events] == [f"event: {event['type']}" for event in told]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    check_response(told[-1]["response"])
    assert told[-1]["type"] == f"response.{told[-1]['response']['status']}"
    pieces = [event["delta"] for event in told if event["type"] == "response.output_text.delta"]
    assert "".join(pieces) == told[-1]["response"]["output"][0]["content"][0]["text"]


def check_response(response: dict[str, Any]) -> None:
    """It has one message, and says why it ends."""
    [message] = response["output"]
    assert message["status"] == response["status"]
    assert (response["status"] == "incomplete") == (response["incomplete_details"] is not None)


def check(events: list[dict[str, Any]], path: str) -> None:
    """A choice ends once, with its last piece, for a reason that the docs have."""
    ends: dict[int, bool] = {}
    for event in events:
        assert "error" not in event, event
        for choice in event["choices"] if path not in LLAMAS else [event]:
            index = choice["index"]
            assert not ends.get(index), "nothing comes behind its end"
            if path in LLAMAS:
                ends[index] = choice["stop"]
                assert choice["stop_type"] in ({"eos", "limit", "word"} if choice["stop"] else {"none"})
            else:
                ends[index] = choice["finish_reason"] is not None
                assert choice["finish_reason"] in (None, "stop", "length")
    assert ends, "an answer has a choice"
    assert all(ends.values())
    assert sorted(ends) == list(range(len(ends)))
