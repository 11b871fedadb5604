"""Tool calls: read from any pieces of an answer, asked for and answered over HTTP, by the `openai` package too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from support.chat_templates import HERMES, MARKED
from support.scripted import END
from support.served import Server

from pangu_server.tool_calls import CLOSES, OPENS, ToolCall, ToolCallReader

GOOD = '{"name": "grep", "arguments": {"q": "é <b>", "n": [1, 2.5, null]}}'
OTHER = '{"name": "ls", "arguments": {}}'
TOOLS = [{"type": "function", "function": {"name": "grep", "parameters": {"type": "object"}}}]
USER = {"role": "user", "content": "hi"}
PARTS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        [OPENS, CLOSES, GOOD, OTHER, OPENS + GOOD + CLOSES, f"{OPENS}\n{OTHER}\n{CLOSES}\n", "\n", " ", "<tool_", "{",
         f'{OPENS}{{"name": "a", "arguments": {{"x": "{OPENS}"}}}}{CLOSES}', "</tool_call", "text"]
    ),
)  # fmt: skip


def read(pieces: list[str], **options: Any) -> tuple[str, list[ToolCall]]:
    reader = ToolCallReader(**options)
    found = [one for piece in pieces for one in reader.push(piece)] + reader.flush()
    assert "" not in found
    calls = [one for one in found if isinstance(one, ToolCall)]
    assert len(calls) == reader.calls
    return "".join(one for one in found if isinstance(one, str)), calls


@given(st.lists(PARTS, max_size=8).map("".join), st.lists(st.integers(0, 200), max_size=8))
def test_however_it_is_cut_the_same_calls_and_content_come_out(text: str, cuts: list[int]) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts})
    pieces = [text[start:end] for start, end in zip([0, *places], [*places, None], strict=True)]
    content, calls = read(pieces)
    assert (content, calls) == read([text]) == read(list(text))
    assert (content == text) or calls, "nothing is lost where nothing is called"
    for call in calls:
        assert isinstance(json.loads(call.arguments), dict)
    letters = "".join(content.split())
    every = iter("".join(text.split()))
    assert all(letter in every for letter in letters), "content is what there was, in its order"
    assert read([text], most_calls=1)[1] == calls[:1]


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        (OPENS + GOOD + CLOSES, "", ["grep"]),
        (f"Let me look.\n{OPENS}\n{GOOD}\n{CLOSES}\n{OPENS}{OTHER}{CLOSES}\n", "Let me look.\n", ["grep", "ls"]),
        (f"{OPENS}{GOOD}", "", ["grep"]),
        (f"{OPENS}{GOOD}</tool", "", ["grep"]),
        (f"{OPENS}{GOOD[:-1]}{CLOSES}", f"{OPENS}{GOOD[:-1]}{CLOSES}", []),
        (f"{OPENS}oh {OPENS}{OTHER}{CLOSES}", f"{OPENS}oh ", ["ls"]),
        (f'{OPENS}{{"name": "f"}}{CLOSES}', "", ["f"]),
        (f'{OPENS}{{"name": "f", "arguments": "x"}}{CLOSES}', None, []),
        (f'{OPENS}{{"name": 1, "arguments": {{}}}}{CLOSES}', None, []),
        (f'{OPENS}{{"name": "f", "arguments": {{"a": NaN}}}}{CLOSES}', None, []),
        (f'{OPENS}{{"name": "f", "arguments": {{"a": 1e999}}}}{CLOSES}', None, []),
        (f'{OPENS}{{"name": "\\ud800", "arguments": {{}}}}{CLOSES}', None, []),
        (f"{OPENS}{'[' * 100_000}{CLOSES}", None, []),
        (f"{OPENS}[{GOOD}]{CLOSES}", None, []),
        (" \n", " \n", []),
        ("a < b <tool", "a < b <tool", []),
    ],
)  # fmt: skip
def test_what_is_a_call(text: str, content: str | None, names: list[str]) -> None:
    found, calls = read([text])
    assert (found, [call.name for call in calls]) == (text if content is None else content, names)


ANSWER = f"So:\n{OPENS}\n{GOOD}\n{CLOSES}\n{OPENS}{OTHER}{CLOSES}"
# With square brackets for the marks of turns, which the scripted vocabulary does not have.
TEMPLATE = HERMES.replace("<|im_start|>", "[").replace("<|im_end|>", "]")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    server = Server(folder, lambda _: [], context_length=2000)
    server.engine.load(server.backend)
    yield server
    server.engine.close()


@pytest.fixture
def server(running: Server) -> Server:
    """Answers with `ANSWER`."""
    running.backend.script = lambda _: [*ANSWER.encode(), END]
    return running


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=server.client)


def chat(server: Server, **body: Any) -> Any:
    return server.post("/v1/chat/completions", **{"messages": [USER], **body})


def prompt_of(server: Server) -> str:
    return bytes(server.backend.prompts[-1]).decode()


def test_the_openai_package_calls_a_tool_and_tells_the_result(server: Server, client: OpenAI) -> None:
    messages: Any = [USER]
    tools: Any = TOOLS
    answer = client.chat.completions.create(
        model="scripted", messages=messages, tools=tools, tool_choice="auto"
    )
    assert json.dumps(TOOLS[0]) in prompt_of(server), "as it came: in the order of its keys"
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "So:\n")
    first, second = choice.message.tool_calls or []
    assert first.type == "function"
    assert first.id != second.id
    assert (first.function.name, json.loads(first.function.arguments)) == (
        "grep",
        json.loads(GOOD)["arguments"],
    )
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "found"} for call in (first, second)]
    messages += [choice.message, *results]
    client.chat.completions.create(model="scripted", messages=messages, tools=tools)
    assert prompt_of(server).endswith(
        f"[assistant\nSo:\n\n{OPENS}\n{GOOD}\n{CLOSES}\n{OPENS}\n{OTHER}\n{CLOSES}]\n"
        "[user\n<tool_response>\nfound\n</tool_response>\n<tool_response>\nfound\n</tool_response>]\n[assistant\n"
    )


def test_the_openai_package_puts_a_stream_together(client: OpenAI) -> None:
    tools: Any = TOOLS
    with client.chat.completions.stream(
        model="scripted", messages=[{"role": "user", "content": "hi"}], tools=tools
    ) as stream:
        seen = [event.type for event in stream if event.type != "chunk"]
        message = stream.get_final_completion().choices[0]
    assert (message.finish_reason, message.message.content) == ("tool_calls", "So:\n")
    calls = [(one.function.name, one.function.arguments) for one in message.message.tool_calls or []]
    assert calls == [("grep", json.dumps(json.loads(GOOD)["arguments"], ensure_ascii=False)), ("ls", "{}")]
    assert seen.count("tool_calls.function.arguments.done") == 2


def test_a_stream_names_the_function_first(server: Server) -> None:
    events, end = server.stream("/v1/chat/completions", messages=[USER], tools=TOOLS, n=2, logprobs=True)
    assert end == "[DONE]"
    for index in (0, 1):
        choices = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        deltas = [choice["delta"] for choice in choices]
        assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
        pieces = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [(one["index"], one["function"].get("name")) for one in pieces] == [
            (0, "grep"), (0, None), (1, "ls"), (1, None),
        ]  # fmt: skip
        assert [bool(one.get("id")) for one in pieces] == [True, False, True, False]
        assert (deltas[-1], choices[-1]["finish_reason"]) == ({"content": ""}, "tool_calls")
        tokens = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
        assert len(tokens) == len(ANSWER.encode()) + 1
    assert not any(choice["delta"] == {} for event in events for choice in event["choices"])


def test_without_tools_the_same_text_is_content(server: Server) -> None:
    bodies: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}]
    for body in bodies:
        [choice] = chat(server, **body).json()["choices"]
        assert (choice["message"], choice["finish_reason"]) == (
            {"role": "assistant", "content": ANSWER},
            "stop",
        )
        assert "<tools>" not in prompt_of(server)


def test_one_call_where_only_one_is_wanted_and_length_is_said(server: Server) -> None:
    [choice] = chat(server, tools=TOOLS, parallel_tool_calls=False).json()["choices"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["grep"]
    cut = len(f"So:\n{OPENS}\n{GOOD}\n{CLOSES}\n{OPENS}x".encode())
    [choice] = chat(server, tools=TOOLS, max_tokens=cut).json()["choices"]
    assert (choice["finish_reason"], len(choice["message"]["tool_calls"])) == ("length", 1)
    assert choice["message"]["content"].endswith(OPENS + "{")


def test_an_answer_of_nothing_but_a_call_has_no_content(server: Server) -> None:
    server.backend.script = lambda _: [*f"{OPENS}{OTHER}{CLOSES}".encode(), END]
    [choice] = chat(server, tools=TOOLS).json()["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "ls", "arguments": "{}"}
    assert chat(server).json()["choices"][0]["message"]["content"] == f"{OPENS}{OTHER}{CLOSES}"


def called(arguments: str) -> dict[str, Any]:
    calls = [{"function": {"name": "f", "arguments": arguments}}]
    return {"messages": [{"role": "assistant", "tool_calls": calls}]}


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice", "nothing makes the model call"),
        ({"tools": TOOLS, "tool_choice": TOOLS[0]}, "tool_choice", "none and auto"),
        ({"tools": [{"type": "custom"}]}, "tools", '"function"'),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", '"name"'),
        ({"tools": [1]}, "tools", "dictionary"),
        ({"messages": [{"role": "assistant", "tool_calls": 1}]}, "messages", "tool_calls are a list"),
        (called("{"), "messages", "a JSON object"),
        (called("[1]"), "messages", "a JSON object"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    server: Server, body: dict[str, Any], param: str, why: str
) -> None:
    answer = chat(server, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert why in answer.json()["error"]["message"]


def test_a_template_without_tools_says_so(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(MARKED)
    server = Server(tmp_path, lambda _: [END])
    server.engine.load(server.backend)
    error = chat(server, tools=TOOLS).json()["error"]
    assert (error["param"], error["message"][:6]) == ("tools", "tools:")
    assert "no place for tools" in error["message"]
    assert chat(server, tools=TOOLS, tool_choice="none").status_code == 200
    server.engine.close()
