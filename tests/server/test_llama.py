"""llama.cpp's own endpoints over the scripted backend: `/completion`, `/props`, `/slots`."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.scripted import CONTEXT_LENGTH, END, FILENAME, MIDDLE, PREFIX, SUFFIX
from support.served import Server, wait_for

from pangu_server.access import Access, Keys
from pangu_server.app import create_app
from pangu_server.protection import protect

ANSWER = "n + 1\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, lambda _: [*ANSWER.encode(), END])
    server.engine.load(server.backend)
    yield server
    server.backend.gate.set()
    server.engine.close()


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all requests that never reach the backend."""
    server = Server(tmp_path_factory.mktemp("refusing"), lambda _: [END])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


def complete(server: Server, **body: Any) -> Any:
    return server.post("/completion", **{"prompt": "p", "n_predict": 20, **body})


def seen(server: Server) -> list[int]:
    return list(server.backend.prompts[-1])


def test_an_answer_has_llama_cpps_form(server: Server) -> None:
    answer = complete(server, prompt="return ", temperature=0, seed=7, cache_prompt=True)
    assert answer.headers["x-pangu-ignored-fields"] == "cache_prompt"
    answer = answer.json()
    assert (answer["content"], answer["stop"], answer["stop_type"]) == (ANSWER, True, "eos")
    assert answer["stopping_word"] == ""
    assert (answer["tokens_evaluated"], answer["tokens_cached"], answer["tokens_predicted"]) == (7, 0, 7)
    assert (answer["model"], answer["truncated"]) == ("scripted", False)
    assert answer["timings"]["predicted_n"] == 7
    settings = answer["generation_settings"]
    assert (settings["n_ctx"], settings["n_predict"]) == (CONTEXT_LENGTH, 20)
    assert (settings["temperature"], settings["seed"], settings["top_k"]) == (0, 7, 0)
    assert not {"tokens", "completion_probabilities", "prompt"} & set(answer)
    assert complete(server, prompt="return ").json()["tokens_cached"] == 6


def test_why_it_stopped(server: Server) -> None:
    word = complete(server, stop=[" +", "1"]).json()
    assert (word["content"], word["stop_type"], word["stopping_word"]) == ("n", "word", " +")
    limit = complete(server, n_predict=3).json()
    assert (limit["content"], limit["stop_type"], limit["stopping_word"]) == ("n +", "limit", "")
    rest = complete(server, n_predict=None).json()
    assert rest["generation_settings"]["n_predict"] == CONTEXT_LENGTH - 1, "as much as there is room for"
    nothing = complete(server, n_predict=0).json()
    assert (nothing["content"], nothing["tokens_evaluated"]) == ("", 1), "the prompt goes into the cache"


def test_a_stream_ends_with_an_event_that_says_stop(server: Server) -> None:
    events, last = server.stream("/completion", prompt="p", n_predict=20, return_tokens=True)
    assert "[DONE]" not in last
    assert '"stop":true' in last
    assert "".join(event["content"] for event in events) == ANSWER
    assert [token for event in events for token in event["tokens"]] == list(ANSWER.encode())
    assert {event["stop_type"] for event in events} == {"none"}
    assert all("generation_settings" not in event for event in events), "the last one has them"
    assert '"generation_settings":' in last


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_a_prompt_is_text_or_tokens_or_both(server: Server, path: str) -> None:
    for prompt, ids in {
        "ab": [97, 98],
        (97, 98): [97, 98],
        (97, "b<fim_middle>", 99): [97, 98, MIDDLE, 99],
        ("é", 97): [*"é".encode(), 97],
        ("one",): [*b"one"],
        ("", 97): [97],
    }.items():
        asked = prompt if isinstance(prompt, str) else list(prompt)
        answer = server.post(path, prompt=asked, n_predict=9)
        assert answer.status_code == 200, answer.text
        assert answer.json()["content"] == ANSWER
        assert seen(server) == ids


def test_several_prompts_have_several_answers(server: Server) -> None:
    rows = complete(server, prompt=["a", [98], [99, "d"]], n=2).json()
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [list(prompt) for prompt in server.backend.prompts] == [[97]] * 2 + [[98]] * 2 + [[99, 100]] * 2
    assert [row["tokens_evaluated"] for row in rows] == [1, 1, 1, 1, 2, 2]


def test_the_alternatives_of_each_token(server: Server) -> None:
    answer = complete(server, n_probs=2).json()
    first = answer["completion_probabilities"][0]
    assert len(answer["completion_probabilities"]) == answer["tokens_predicted"] == 7
    assert (first["id"], first["token"], first["bytes"]) == (ord("n"), "n", [ord("n")])
    assert [other["token"] for other in first["top_logprobs"]] == ["n", "o"]
    assert first["logprob"] == first["top_logprobs"][0]["logprob"] < 0
    assert "completion_probabilities" not in complete(server, n_probs=0).json()


def test_biases_come_as_pairs_too(server: Server) -> None:
    for bias in ([[97, 1.5], [98, False]], {"97": 1.5, "98": -100}):
        assert complete(server, logit_bias=bias).status_code == 200
        assert server.backend.options is not None
        assert server.backend.options.logit_bias == ((97, 1.5), (98, -100.0))
    assert complete(server, logit_bias=[]).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [97, 10**6]}, "prompt"),
        ({"prompt": [97, "\ud800"]}, "prompt"),
        ({"prompt": [97, None]}, "prompt"),
        ({"prompt": {"prompt_string": "a"}}, "prompt"),
        ({"prompt": ["a", [1, [2]]]}, "prompt"),
        ({"n_predict": -2}, "n_predict"),
        ({"n_probs": 21}, "logprobs"),
        ({"logit_bias": [["hello", 1]]}, "logit_bias"),
        ({"logit_bias": [1, 2]}, "logit_bias"),
        ({"n_predict": CONTEXT_LENGTH}, "prompt"),
    ],
)
def test_what_it_cannot_do_is_a_400(refusing: Server, body: dict[str, Any], param: str) -> None:
    whole = json.dumps({"prompt": "p", "n_predict": 9, **body})
    answer = refusing.client.post("/completion", content=whole, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_the_hole_of_an_editor_that_writes_the_tokens_itself(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [*b"n", FILENAME, *b"next.py"])
    server.engine.load(server.backend)
    answer = complete(server, prompt="<fim_prefix>a<fim_suffix>b<fim_middle>").json()
    assert seen(server) == [PREFIX, 97, SUFFIX, 98, MIDDLE]
    assert answer["content"] == "n", "it ends where the model turns to the next file"
    server.engine.close()


def test_props_say_what_a_client_has_to_know(server: Server) -> None:
    props = server.client.get("/props").json()
    settings = props["default_generation_settings"]
    assert (settings["n_ctx"], settings["is_processing"]) == (CONTEXT_LENGTH, False)
    assert (props["total_slots"], props["model_path"], props["chat_template"]) == (1, "scripted", "")
    assert props["modalities"] == {"vision": False, "audio": False}
    assert complete(server, n_predict=-1).status_code == 200
    drawn = server.backend.options
    assert drawn is not None
    assert settings["params"]["n_predict"] == -1
    assert settings["params"]["temperature"] == drawn.temperature, "what a request gets that says nothing"
    assert (settings["params"]["top_k"], settings["params"]["top_p"]) == (drawn.top_k, drawn.top_p)
    assert settings["params"]["min_p"] == drawn.min_p


def test_props_have_the_chat_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    server = Server(tmp_path, lambda _: [END])
    server.engine.load(server.backend)
    assert server.client.get("/props").json()["chat_template"] == "{{ messages[0].content }}"
    server.engine.close()


def test_slots_say_what_runs_and_nothing_of_it(server: Server) -> None:
    assert server.client.get("/slots").json() == [{"id": 0, "n_ctx": CONTEXT_LENGTH, "is_processing": False}]
    assert server.client.get("/slots?fail_on_no_slot=1").status_code == 200
    server.backend.gate.clear()
    client = threading.Thread(target=complete, args=(server,), kwargs={"prompt": "secret"})
    client.start()
    wait_for(lambda: server.engine.load_count.running == 1)
    assert server.client.get("/slots").json() == [{"id": 0, "n_ctx": CONTEXT_LENGTH, "is_processing": True}]
    full = server.client.get("/slots?fail_on_no_slot=1")
    assert (full.status_code, full.json()["error"]["type"]) == (503, "server_error")
    server.backend.gate.set()
    client.join()
    wait_for(lambda: not server.client.get("/slots").json()[0]["is_processing"])


@pytest.mark.parametrize("path", ["/props", "/slots"])
def test_both_need_a_model_and_a_key_and_know_head(tmp_path: Path, path: str) -> None:
    server = Server(tmp_path, lambda _: [END])
    guarded = TestClient(
        protect(create_app(server.engine), keys=Keys(lambda: Access.of(["key"])), max_body_bytes=1000)
    )
    headers = {"authorization": "Bearer key"}
    assert guarded.get(path).status_code == 401
    assert guarded.get(path, headers=headers).status_code == 503, "it still loads"
    server.engine.load(server.backend)
    whole, head = guarded.get(path, headers=headers), guarded.head(path, headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    server.engine.close()
