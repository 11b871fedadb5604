"""What editors really send: recorded bodies, what must reach the model, and what each editor reads.

Shapes after the clients' sources; the code around the cursor is made up.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.scripted import FILENAME, MIDDLE, PREFIX, SUFFIX
from support.served import Server

BEFORE, AFTER, HOLE = "def f(n):\n    return ", "\n\nf(1)\n", "n + 1"
TEMPLATED = f"<fim_prefix>{BEFORE}<fim_suffix>{AFTER}<fim_middle>"
AROUND = [PREFIX, *BEFORE.encode(), SUFFIX, *AFTER.encode(), MIDDLE]
TEMPLATE_STOPS = [
    "<fim_prefix>",
    "<fim_suffix>",
    "<fim_middle>",
    "<file_sep>",
    "<|endoftext|>",
    "</fim>",
    "</code>",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Knows the answer, and then goes on with the next file, as StarCoder does."""
    server = Server(tmp_path, lambda _: [*HOLE.encode(), FILENAME, *b"next.py"], model_names=["starcoder"])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


Read = Callable[[list[dict[str, Any]]], str]


def choice_text(events: list[dict[str, Any]]) -> str:
    return "".join(event["choices"][0]["text"] for event in events if event["choices"])


def delta_content(events: list[dict[str, Any]]) -> str:
    return "".join(event["choices"][0]["delta"]["content"] for event in events if event["choices"])


def content(events: list[dict[str, Any]]) -> str:
    return "".join(event["content"] for event in events)


CLIENTS: dict[str, tuple[str, dict[str, Any], Read]] = {
    "Continue, its own template": (
        "/v1/completions",
        {
            "model": "starcoder",
            "prompt": TEMPLATED,
            "max_tokens": 80,
            "temperature": 0.01,
            "stream": True,
            "stop": [*TEMPLATE_STOPS, "/src/", "#- coding: utf-8", "```"],
        },
        choice_text,
    ),
    "Continue, a FIM provider": (
        "/v1/fim/completions",
        {
            "model": "starcoder",
            "prompt": BEFORE,
            "suffix": AFTER,
            "max_tokens": 80,
            "temperature": 0.01,
            "top_p": None,
            "stop": ["\n\n"],
            "stream": True,
        },
        delta_content,
    ),
    "Continue, llama.cpp": (
        "/completion",
        {
            "prompt": TEMPLATED,
            "stream": True,
            "n_predict": 80,
            "min_p": None,
            "mirostat": None,
            "stop": [*TEMPLATE_STOPS, "```"],
            "top_k": 40,
            "top_p": 0.95,
            "temperature": 0.01,
        },
        content,
    ),
    "Tabby, llama.cpp": (
        "/completion",
        {
            "seed": 1763913247,
            "prompt": TEMPLATED,
            "n_predict": 64,
            "stream": True,
            "temperature": 0.1,
            "presence_penalty": 0.5,
        },
        content,
    ),
    "Zed, an edit prediction": (
        "/v1/completions",
        {
            "model": "starcoder",
            "prompt": TEMPLATED,
            "max_tokens": 80,
            "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>"],
        },
        choice_text,
    ),
    "litellm, a text completion": (
        "/v1/completions",
        {
            "model": "starcoder",
            "prompt": BEFORE,
            "suffix": AFTER,
            "max_tokens": 64,
            "n": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": "default_user_id",
        },
        choice_text,
    ),
    "llm-ls": (
        "/v1/completions",
        {
            "model": "starcoder",
            "prompt": TEMPLATED,
            "max_new_tokens": 60,
            "max_tokens": 60,
            "temperature": 0.2,
            "top_p": 0.95,
            "do_sample": True,
            "return_full_text": False,
            "stop": ["<|endoftext|>"],
            "stream": False,
        },
        choice_text,
    ),
    "minuet-ai.nvim": (
        "/v1/completions",
        {
            "model": "starcoder",
            "prompt": BEFORE,
            "suffix": AFTER,
            "max_tokens": 56,
            "top_p": 0.9,
            "stop": ["\n\n"],
            "stream": True,
        },
        choice_text,
    ),
    "Tabby as a client": (
        "/v1/completions",
        {
            "model": "starcoder",
            "prompt": BEFORE,
            "suffix": AFTER,
            "max_tokens": 64,
            "temperature": 0.1,
            "stream": True,
            "presence_penalty": 0.5,
        },
        choice_text,
    ),
    "llama.vim": (
        "/infill",
        {
            "input_prefix": "def f(n):\n",
            "prompt": "    return ",
            "input_suffix": AFTER,
            "input_extra": [],
            "n_predict": 64,
            "n_indent": 4,
            "stop": [],
            "top_k": 40,
            "top_p": 0.90,
            "samplers": ["top_k", "top_p", "infill"],
            "t_max_prompt_ms": 500,
            "t_max_predict_ms": 60_000,
            "stream": False,
            "cache_prompt": True,
            "response_fields": ["content", "timings/prompt_n", "tokens_cached", "truncated"],
        },
        content,
    ),
    "twinny": (
        "/v1/completions",
        {
            "model": "starcoder",
            "prompt": TEMPLATED,
            "stream": True,
            "temperature": 0.2,
            "max_tokens": 64,
            "keep_alive": "5m",
            "options": {"temperature": 0.2, "num_predict": 64},
        },
        choice_text,
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_an_editors_request_is_answered(server: Server, client: str) -> None:
    path, body, read = CLIENTS[client]
    if body.get("stream") and path == "/completion":
        events, end = server.stream(path, **body)
        events.append(json.loads(end))
        assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    elif body.get("stream"):
        events, end = server.stream(path, **body)
        assert end == "[DONE]"
        events = [event for event in events if event["choices"]]
        assert [event for event in events if event["choices"][0]["finish_reason"]], "Tabby panics without"
    else:
        answer = server.post(path, **body)
        assert answer.status_code == 200, answer.text
        events = [answer.json()]
    assert list(server.backend.prompts[-1]) == AROUND
    assert read(events) == HOLE, "the hole ends where the model turns to the next file"


def test_llama_vim_warms_the_cache_with_no_tokens(server: Server) -> None:
    answer = server.post("/infill", input_prefix="", input_suffix="", input_extra=[], n_predict=0)
    assert (answer.status_code, answer.json()["content"]) == (200, "")


def test_a_bare_stop_string_and_a_list_are_the_same(server: Server) -> None:
    both = [server.complete(stop=stop).json()["choices"][0]["text"] for stop in (" +", [" +"])]
    assert both == ["n", "n"]
