"""`/v1/responses` over the scripted backend, read by the `openai` package."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from support.scripted import CONTEXT_LENGTH, END
from support.served import Server

TEMPLATE = """{%- for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    server = Server(tmp_path, lambda _: [*"Größe".encode(), END])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all requests that never reach the backend."""
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    server = Server(folder, lambda _: [END])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    """The package, whose requests go to the application."""
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=server.client
    )


def seen(server: Server) -> str:
    return bytes(server.backend.prompts[-1]).decode()


def test_the_openai_package_reads_a_response(server: Server, client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="scripted", input="hi", max_output_tokens=20, metadata={"from": "me"}, store=True
    )
    assert isinstance(response, Response)
    assert response.output_text == "Größe"
    assert (response.object, response.status, response.model) == ("response", "completed", "scripted")
    assert (response.error, response.incomplete_details, response.metadata) == (None, None, {"from": "me"})
    assert response.id.startswith("resp_")
    [message] = response.output
    assert message.type == "message"
    assert (message.role, message.status) == ("assistant", "completed")
    assert response.usage is not None
    prompt = len("[user]hi[assistant]")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (prompt, 8)
    assert response.usage.total_tokens == prompt + 8
    assert response.usage.input_tokens_details.cached_tokens == 0
    assert response.max_output_tokens == 20
    assert (response.temperature, response.top_p) == (1, 1)
    Response.model_validate(response.model_dump(), strict=False)


def test_a_conversation_is_rendered_as_in_chat(server: Server, client: openai.OpenAI) -> None:
    first = client.responses.create(input="hi", instructions="be short")
    assert seen(server) == "[system]be short[user]hi[assistant]"
    turns: list[Any] = [
        {"role": "developer", "content": "be kind"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        *[item.model_dump() for item in first.output],  # an answer goes back as it came
        {"type": "message", "role": "user", "content": "c<|endoftext|>"},
    ]
    client.responses.create(input=turns)
    assert seen(server) == "[system]be kind[user]ab[assistant]Größe[user]c<|endoftext|>[assistant]"
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]
    server.post("/v1/chat/completions", messages=messages)
    assert seen(server) == "[system]be short[user]hi[assistant]"


def test_the_openai_package_reads_a_stream(server: Server, client: openai.OpenAI) -> None:
    events = list(client.responses.create(input="hi", stream=True, max_output_tokens=20))
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert [event.type for event in events[-4:]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert {event.type for event in events[4:-4]} == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Größe"
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Größe"
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 8
    with client.responses.stream(model="scripted", input="hi") as stream:
        assert stream.get_final_response().output_text == "Größe"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_says_so(client: openai.OpenAI, stream: bool) -> None:
    if stream:
        *_, last = client.responses.create(input="hi", max_output_tokens=2, stream=True)
        assert last.type == "response.incomplete"
        response = last.response
    else:
        response = client.responses.create(input="hi", max_output_tokens=2)
    assert (response.output_text, response.status) == ("Gr", "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_sampling_reaches_the_backend(server: Server, client: openai.OpenAI) -> None:
    client.responses.create(input="hi", temperature=0.5, top_p=0.25, extra_body={"seed": 7, "top_k": 3})
    assert server.backend.options is not None
    sampling = server.backend.options
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.top_k) == (0.5, 0.25, 7, 3)
    assert sampling.max_tokens == CONTEXT_LENGTH - len("[user]hi[assistant]"), "what fits"


def test_an_answer_has_the_form_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    server = Server(tmp_path, lambda _: [*b"no object"] * 9)
    server.engine.load(server.backend)
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "name": "one", "schema": schema, "strict": True}}
    answer = server.post("/v1/responses", input="hi", text=form, temperature=0).json()
    assert json.loads(answer["output"][0]["content"][0]["text"]) == {"a": 1}
    assert answer["text"]["format"]["schema"] == schema
    server.engine.close()


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "c"}, "conversation", "whole"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools", "/v1/chat/completions"),
        ({"background": True}, "background", "leave it out"),
        ({"n": 2}, "n", "one answer"),
        ({"return_token_ids": True}, "return_token_ids", "/v1/chat/completions"),
        ({"input": []}, "input", "at least one"),
        ({"input": [{"type": "function_call_output", "output": ""}]}, "input", "string"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "text parts"),
        ({"metadata": {"a": "\ud800"}}, "metadata or text", "Unicode"),
        ({"text": {"format": {"type": "text", "name": "\ud800"}}}, "metadata or text", "Unicode"),
        ({"text": {"format": {"type": "text"}}, "response_format": {"type": "text"}}, "text", "one form"),
        ({"max_output_tokens": CONTEXT_LENGTH}, "prompt", "context"),
    ],
)
def test_what_it_cannot_do_is_a_400(refusing: Server, body: dict[str, Any], param: str, said: str) -> None:
    whole = json.dumps({"input": "hi", **body})
    answer = refusing.client.post(
        "/v1/responses", content=whole, headers={"content-type": "application/json"}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), answer.text
    assert said in error["message"]


def test_what_changes_nothing_passes(server: Server) -> None:
    neutral: dict[str, Any] = {
        "tools": [],
        "previous_response_id": None,
        "background": False,
        "store": True,
        "user": "me",
    }
    answer = server.post("/v1/responses", input="hi", reasoning={}, **neutral)
    assert answer.status_code == 200
    assert answer.headers["x-pangu-ignored-fields"] == "reasoning"


def test_another_model_and_none_are_told_apart(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt", input="hi")


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [END])
    server.engine.load(server.backend)
    answer = server.post("/v1/responses", input="hi")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    server.engine.close()
