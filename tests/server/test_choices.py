"""Several prompts, several choices, echo and log-probabilities, whole and streamed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.scripted import END, logits
from support.served import Server, usage, wait_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Says the prompt backwards."""
    server = Server(tmp_path, lambda prompt_ids: [*reversed(prompt_ids), END])
    server.engine.load(server.backend)
    yield server
    server.backend.gate.set()
    server.engine.close()


def texts(answer: Any) -> list[str]:
    return [choice["text"] for choice in answer.json()["choices"]]


@pytest.mark.parametrize("prompt", [["abc", "de"], [[97, 98, 99], [100, 101]]])
def test_prompts_and_choices_are_numbered_prompt_by_prompt(server: Server, prompt: list[Any]) -> None:
    answer = server.complete(prompt=prompt, n=2)
    assert texts(answer) == ["cba", "cba", "ed", "ed"]
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2, 3]
    # A prompt counts once, however many choices it has.
    assert answer.json()["usage"] == usage(prompt=5, completion=14)


def test_a_stream_names_the_choice_of_each_piece(server: Server) -> None:
    events, end = server.stream(prompt=["abc", "de"], n=2, stream_options={"include_usage": True})
    pieces: dict[int, str] = dict.fromkeys(range(4), "")
    for event in events[:-1]:
        [choice] = event["choices"]
        pieces[choice["index"]] += choice["text"]
    assert list(pieces.values()) == ["cba", "cba", "ed", "ed"]
    finished = [e["choices"][0]["index"] for e in events[:-1] if e["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1, 2, 3]
    assert (events[-1]["choices"], events[-1]["usage"]["completion_tokens"], end) == ([], 14, "[DONE]")


def test_a_usage_in_every_chunk_counts_up(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events, _ = server.stream(prompt="abc", stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_seeds_differ_between_choices_and_repeat_between_requests(server: Server) -> None:
    for _ in range(2):
        server.complete(prompt=["a", "b"], n=2, seed=7)
    assert server.backend.seeds == [7, 8, 7, 8] * 2
    assert server.complete(seed=-1).status_code == 200


def test_best_of_returns_the_most_probable(tmp_path: Path) -> None:
    answers = iter("abc" * 2)
    server = Server(tmp_path, lambda _: [ord(next(answers)), END])
    sharpness = {ord("a"): 1.0, ord("b"): 3.0, ord("c"): 2.0, END: 1.0}
    server.backend.logits = lambda token_id: logits(token_id) * np.float32(sharpness[token_id])
    server.engine.load(server.backend)
    answer = server.complete(best_of=3).json()
    assert [choice["text"] for choice in answer["choices"]] == ["b"]
    assert answer["choices"][0]["logprobs"] is None, "not asked for"
    assert answer["usage"]["completion_tokens"] == 6, "all that was generated is counted"
    two = server.complete(best_of=3, n=2, logprobs=0).json()["choices"]
    assert [(choice["index"], choice["text"]) for choice in two] == [(0, "b"), (1, "c")]
    server.engine.close()


def test_logprobs_have_one_entry_a_token(server: Server) -> None:
    [choice] = server.complete(prompt="éx", logprobs=2).json()["choices"]
    logprobs = choice["logprobs"]
    # "x" and the two bytes of "é" the wrong way round, then end-of-text.
    assert logprobs["tokens"] == ["x", "bytes:\\xa9", "bytes:\\xc3", "<|endoftext|>"]
    assert logprobs["text_offset"] == [0, 1, 2, 2], (
        "a byte that begins no character is read as U+FFFD at once"
    )
    for position, value in enumerate(logprobs["token_logprobs"]):
        top = logprobs["top_logprobs"][position]
        assert value == pytest.approx(-0.6931, abs=1e-3)
        assert sorted(top.values(), reverse=True) == pytest.approx([-0.6931, -1.3863], abs=1e-3)
        assert top[logprobs["tokens"][position]] == value


def test_logprobs_0_reports_the_chosen_token_alone(server: Server) -> None:
    [choice] = server.complete(prompt="ab", logprobs=0).json()["choices"]
    assert [list(top) for top in choice["logprobs"]["top_logprobs"]] == [["b"], ["a"], ["<|endoftext|>"]]


def test_tokens_of_a_stop_string_are_not_reported(server: Server) -> None:
    [choice] = server.complete(prompt="pots!", stop="stop", logprobs=0).json()["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("!", ["!"])


def test_a_stream_reports_the_same_logprobs(server: Server) -> None:
    [whole] = server.complete(prompt="xyzzy", logprobs=1, stop="q").json()["choices"]
    events, _ = server.stream(prompt="xyzzy", logprobs=1, stop="q")
    pieces = [event["choices"][0]["logprobs"] for event in events]
    for name, values in whole["logprobs"].items():
        assert [value for piece in pieces for value in piece[name]] == values


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_scores_the_prompt(server: Server, max_tokens: int) -> None:
    body = server.complete(prompt=[97, 98, 99], echo=True, logprobs=1, max_tokens=max_tokens).json()
    [choice] = body["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "abc" + "c" * max_tokens
    assert choice["finish_reason"] == "length"
    assert logprobs["tokens"] == list("abc" + "c" * max_tokens)
    assert logprobs["text_offset"] == list(range(3 + max_tokens))
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:3] == [-1.0, -1.0]
    assert body["usage"]["completion_tokens"] == max_tokens


@pytest.mark.parametrize("logprobs", [None, 0])
def test_echo_comes_first_in_a_stream(server: Server, logprobs: int | None) -> None:
    events, _ = server.stream(prompt="é<|endoftext|>b", echo=True, logprobs=logprobs)
    pieces = [event["choices"][0]["text"] for event in events]
    assert pieces[0] == "é<|endoftext|>b"
    assert "".join(pieces[1:]) == "b"
    if logprobs is not None:
        assert events[0]["choices"][0]["logprobs"]["tokens"][2:] == ["<|endoftext|>", "b"]


def test_a_failure_in_one_choice_ends_the_request_and_frees_the_others(tmp_path: Path) -> None:
    def script(prompt_ids: Sequence[int]) -> Iterator[int]:
        yield ord("x")
        if prompt_ids[0] == ord("b"):
            raise ValueError("fault")
        yield END

    server = Server(tmp_path, script)
    server.engine.load(server.backend)
    assert server.complete(prompt=["a", "b", "c"]).status_code == 500
    wait_for(lambda: server.metric("vllm:num_requests_waiting") == 0)
    events, end = server.stream(prompt=["a", "b", "c"])
    assert ("error" in events[-1], end) == (True, "[DONE]")
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0)
    server.engine.close()
