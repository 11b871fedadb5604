"""What agents, proxies and chat windows really send to a chat: recorded bodies, and what each of them reads.

Shapes after the clients' sources; what is said is made up.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.scripted import CONTEXT_LENGTH, END
from support.served import Server

TEMPLATE = """{%- for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"""
SYSTEM, ASKED, ANSWER = "Be short.", "What is n?", "A number."
PLAIN = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASKED}]
IN_PARTS: list[dict[str, Any]] = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "is n?"}]},
]
USAGE = {"include_usage": True}

CHATS: dict[str, dict[str, Any]] = {
    "Cline": {
        "model": "starcoder",
        "messages": IN_PARTS,
        "temperature": 0,
        "max_tokens": None,
        "reasoning_effort": None,
        "stream": True,
        "stream_options": USAGE,
        "tools": None,
    },
    "Continue": {
        "model": "starcoder",
        "messages": IN_PARTS,
        "max_tokens": 60,
        "temperature": 0.1,
        "stop": [],
        "stream": True,
        "stream_options": USAGE,
    },
    "Zed": {
        "model": "starcoder",
        "messages": IN_PARTS,
        "stream": True,
        "stream_options": USAGE,
        "max_completion_tokens": 60,
        "stop": [],
        "temperature": 1.0,
        "prompt_cache_key": "1d6f0c9a-7c1e-4b0c-9a53-2a0c2f6f1c11",
    },
    "litellm": {
        "model": "starcoder",
        "messages": PLAIN,
        "temperature": 0.7,
        "top_p": 1,
        "n": 1,
        "max_tokens": 60,
        "stream": True,
        "stream_options": USAGE,
        "user": "default_user_id",
        "metadata": {"trace": "1"},
    },
    "open-webui": {
        "stream": True,
        "model": "starcoder",
        "messages": PLAIN,
        "stream_options": USAGE,
        "temperature": 0.8,
        "max_tokens": 60,
        "frequency_penalty": 0,
        "seed": 42,
        "stop": ["\n\n\n"],
    },
    "open-webui, a title": {
        "model": "starcoder",
        "messages": PLAIN,
        "stream": False,
        "max_completion_tokens": 60,
    },
    "minuet-ai.nvim": {
        "model": "starcoder",
        "messages": PLAIN,
        "stream": True,
        "max_tokens": 56,
        "top_p": 0.9,
    },
    "twinny": {
        "model": "starcoder",
        "messages": PLAIN,
        "stream": True,
        "max_tokens": 60,
        "temperature": 0.2,
        "keep_alive": "5m",
        "options": {"temperature": 0.2, "num_predict": 60},
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("chats")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    server = Server(folder, lambda _: [*ANSWER.encode(), END], model_names=["starcoder"])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


@pytest.mark.parametrize("client", CHATS)
def test_a_chat_is_answered(server: Server, client: str) -> None:
    body = CHATS[client]
    if body["stream"]:
        events, end = server.stream("/v1/chat/completions", **body)
        assert end == "[DONE]"
        if "stream_options" in body:
            *events, last = events
            assert last["choices"] == []
            assert last["usage"]["completion_tokens"] == len(ANSWER) + 1
            assert last["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0
        choices = [choice for event in events for choice in event["choices"]]
        assert choices[0]["delta"]["role"] == "assistant"
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
    else:
        answer = server.post("/v1/chat/completions", **body)
        assert answer.status_code == 200, answer.text
        choices = answer.json()["choices"]
        text = choices[0]["message"]["content"]
    assert (text, choices[-1]["finish_reason"]) == (ANSWER, "stop")
    assert bytes(server.backend.prompts[-1]).decode() == f"[system]{SYSTEM}[user]{ASKED}[assistant]"


def test_what_clients_ask_before_they_begin(server: Server) -> None:
    cards = server.client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["scripted", "starcoder"], (
        "open-webui, Cline: a list to choose from"
    )
    assert cards[0]["max_model_len"] == CONTEXT_LENGTH, "Continue"
    assert server.client.get("/health").json() == {"status": "ok"}, "llama.vscode"
    assert server.client.get("/props").json()["default_generation_settings"]["n_ctx"] == CONTEXT_LENGTH
