"""Structured output over a scripted backend: each way to ask for it, what cannot go with it, and how answers end."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.scripted import END
from support.served import Server

# Whatever it is asked, this is what the model would say: the digits over and over.
SCRIPT = [byte for _ in range(30) for byte in b'0123456789"}']
PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "maximum": 999}},
    "required": ["age"],
    "additionalProperties": False,
}
YES_NO: dict[str, Any] = {"structured_outputs": {"choice": ["yes", "no"]}}


def script(prompt_ids: Sequence[int]) -> list[int]:
    return SCRIPT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("structured"), script)
    server.engine.load(server.backend)
    yield server
    server.engine.close()


def answer_of(server: Server, path: str = "/v1/completions", **body: Any) -> tuple[str, str]:
    """The text and the finish reason of a greedy answer."""
    prompts: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "p", "max_tokens": 100},
        "/infill": {"input_prefix": "p", "input_suffix": "s", "n_predict": 100},
        "/v1/fim/completions": {"prompt": "p", "suffix": "s", "max_tokens": 100},
    }
    answer = server.post(path, temperature=0, **prompts[path], **body)
    assert answer.status_code == 200, answer.text
    assert "x-pangu-ignored-fields" not in answer.headers
    if path == "/infill":
        return answer.json()["content"], answer.json()["stop_type"]
    [choice] = answer.json()["choices"]
    return choice.get("text") or choice["message"]["content"], choice["finish_reason"]


REGEX, GBNF, LARK = "[a-c]x{2}", 'root ::= "a" [k-m]+ "."', 'start: "a" WORD "."\nWORD: /[k-m]+/'


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON}}},
            "person",
        ),
        ({"response_format": {"type": "json_schema", "schema": PERSON}}, "person"),
        ({"response_format": {"type": "json_object", "schema": PERSON}}, "person"),
        ({"structured_outputs": {"json": PERSON}}, "person"),
        ({"structured_outputs": {"json": json.dumps(PERSON)}}, "person"),
        ({"guided_json": PERSON}, "person"),
        ({"json_schema": PERSON}, "person"),
        ({"structured_outputs": {"regex": REGEX}}, REGEX),
        ({"guided_regex": f"^{REGEX}$"}, REGEX),
        ({"structured_outputs": {"choice": ['a"é\n', "."]}}, r'a"é\n|\.'),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"structured_outputs": {"grammar": GBNF}}, r"a[k-m]+\."),
        ({"guided_grammar": LARK}, r"a[k-m]+\."),
        ({"grammar": GBNF}, r"a[k-m]+\."),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/infill", "/v1/fim/completions"])
def test_every_way_to_ask_is_honoured(server: Server, path: str, body: dict[str, Any], pattern: str) -> None:
    text, reason = answer_of(server, path, **body)
    if pattern == "person":
        assert isinstance(json.loads(text)["age"], int)
    else:
        assert re.fullmatch(pattern, text)
    assert reason in ("stop", "eos")


@pytest.mark.parametrize(
    "body",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}],
)
def test_any_object_is_one(server: Server, body: dict[str, Any]) -> None:
    text, reason = answer_of(server, **body)
    assert (type(json.loads(text)), reason) == (dict, "stop")
    answer = server.complete(temperature=0, max_tokens=1, **body).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (text[:1], "length")


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": None, "structured_outputs": None, "grammar": None, "json_schema": None},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "disable_any_whitespace": False}},
        {"grammar": "", "guided_regex": ""},
    ],
)
def test_a_neutral_value_changes_nothing(server: Server, body: dict[str, Any]) -> None:
    assert answer_of(server, **body) == answer_of(server)
    options = server.backend.options
    assert options is not None
    assert options.constraint is None


def test_whitespace_is_as_asked(server: Server) -> None:
    schema: dict[str, Any] = {"structured_outputs": {"json": PERSON, "disable_any_whitespace": True}}
    assert re.fullmatch(r'\{"age":\d+\}', answer_of(server, **schema)[0])
    wide: dict[str, Any] = {"guided_json": PERSON, "guided_whitespace_pattern": "~~"}
    assert re.fullmatch(r'\{(~~)?"age"(~~)?:(~~)?\d+(~~)?\}', answer_of(server, **wide)[0])


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"grammar": GBNF, "guided_regex": "a"}, "grammar", "only one"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "only one"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs", "structural_tag"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs its schema"),
        ({"guided_choice": []}, "guided_choice", "at least one"),
        ({**YES_NO, "ignore_eos": True}, "ignore_eos", "leave it out"),
        ({**YES_NO, "min_tokens": 2}, "min_tokens", "leave it out"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_regex": r"a\b"}, "guided_regex", "lookarounds"),
        ({"guided_json": {"type": "wizard"}}, "guided_json", "wizard"),
        ({"guided_json": {"not": {}}}, "guided_json", "Unimplemented"),
        ({"guided_json": "{"}, "guided_json", "line 1"),
        ({"guided_json": False}, "guided_json", "nsatisfiable"),
        ({"guided_json": {"$ref": "http://example.org/x"}}, "guided_json", "not fetch"),
        ({"guided_choice": ["\ud800"]}, "guided_choice", "parsing string"),
        ({"grammar": 'root ::= "a'}, "grammar", "end of input"),
        ({"grammar": 'rot ::= "a"'}, "grammar", "root"),
        ({"grammar": 'root ::= "a" bare'}, "grammar", "bare"),
        ({"grammar": 'start: start "a"'}, "grammar", "nothing matches"),
        ({"guided_regex": "a" * 70_000}, "guided_regex", "more than 64 KiB"),
        # What ends the process that reads it: its time, its stack.
        ({"guided_json": {"type": "integer", "multipleOf": 99_999_999}}, "guided_json", "more than a second"),
        (
            {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(3000)) + '\nr3000: "a"'},
            "grammar",
            "nested too deeply",
        ),
        ({"grammar": "root ::= " + "(" * 9000 + '"a"' + ")" * 9000}, "grammar", "recursion"),
    ],
)
def test_what_cannot_be_is_a_400_with_its_reason(
    server: Server, body: dict[str, Any], param: str, reason: str
) -> None:
    answer = server.client.post(  # half a surrogate pair is not UTF-8
        "/v1/completions",
        content=json.dumps({"prompt": "p", **body}),
        headers={"content-type": "application/json"},
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert reason in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400
    assert answer_of(server, **YES_NO) == ("no", "stop"), "the next one is read all the same"


def test_a_complete_answer_needs_no_end_token(server: Server) -> None:
    answer = server.complete(temperature=0, max_tokens=2, **YES_NO).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("no", "stop")
    assert answer["usage"]["completion_tokens"] == 2


def test_where_the_text_may_end_the_model_decides(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [*b"ab", END, *b"abab"])
    server.engine.load(server.backend)
    assert answer_of(server, guided_regex="(ab)*") == ("ab", "stop")
    assert answer_of(server, guided_regex="(ab)+abab") == ("ababab", "stop"), "not before it is complete"
    server.engine.close()


def test_a_cut_answer_is_a_beginning(server: Server) -> None:
    text, reason = answer_of(server, guided_json=PERSON, stop='":')
    assert (text.replace("\n", "").replace("\t", ""), reason) == ('{"age', "stop")
    answer = server.complete(temperature=0, max_tokens=4, guided_json=PERSON).json()
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert '{"age":'.startswith(re.sub(r"\s", "", choice["text"]))


def test_choices_have_matchers_of_their_own_and_seeds_repeat(server: Server) -> None:
    body = {"guided_regex": "[a-z]{3}-[0-9]{2}", "n": 4, "temperature": 2, "seed": 3}
    first = [choice["text"] for choice in server.complete(**body).json()["choices"]]
    assert all(re.fullmatch("[a-z]{3}-[0-9]{2}", text) for text in first)
    assert len(set(first)) > 1
    assert [choice["text"] for choice in server.complete(**body).json()["choices"]] == first


def test_a_stream_has_the_same_text(server: Server) -> None:
    whole, _ = answer_of(server, guided_json=PERSON)
    events, end = server.stream(temperature=0, guided_json=PERSON)
    assert "".join(event["choices"][0]["text"] for event in events) == whole
    assert (events[-1]["choices"][0]["finish_reason"], end) == ("stop", "[DONE]")


def test_logprobs_are_the_models_own(server: Server) -> None:
    [choice] = server.complete(temperature=0, logprobs=1, **YES_NO).json()["choices"]
    # The script says "0" where only "y" and "n" may come: its alternatives do not know of the grammar.
    assert choice["logprobs"]["tokens"] == ["n", "o"]
    assert choice["logprobs"]["token_logprobs"][0] == pytest.approx(-0.6931, abs=1e-3)


def test_a_model_that_loads_reads_no_grammar(tmp_path: Path) -> None:
    server = Server(tmp_path, script)
    assert server.complete(**YES_NO).status_code == 503
    assert server.engine.grammars._checker._child is None
    server.engine.close()


# The lexer takes as many digits as there are, so none is left for what must follow them.
DEAD_END = "start: NUMBER SEVEN\nNUMBER: /[0-9]{1,3}/\nSEVEN: /7/ & /8/"


def test_a_grammar_without_a_way_on_ends_with_an_error(server: Server) -> None:
    answer = server.complete(temperature=0, grammar=DEAD_END)
    assert answer.status_code == 400
    assert "no answer can match it" in answer.json()["error"]["message"]
    events, end = server.stream(temperature=0, grammar=DEAD_END)
    assert "no answer can match it" in events[-1]["error"]["message"]
    assert end == "[DONE]"
    assert server.engine.load_count.running == 0
