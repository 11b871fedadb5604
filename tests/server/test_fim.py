"""Fill in the middle: the prompt that reaches the model, its budget, where the hole ends, and three wire forms."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted import CONTEXT_LENGTH, END, FILENAME, MIDDLE, PREFIX, SUFFIX, byte_tokenizer, shared
from support.served import Server
from tokenizers import Tokenizer

from pangu_convert.infilling import FAMILIES, FimOrder
from pangu_server.encoding import Encoder
from pangu_server.errors import ContextLengthExceeded
from pangu_server.fim import FillInMiddle, SourceFile


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Fills every hole with `return n`."""
    server = Server(tmp_path, lambda _: [*b"return n", END])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


@pytest.fixture
def fim() -> FillInMiddle:
    found = FillInMiddle.find(Encoder(byte_tokenizer(), [END]))
    assert found is not None
    return found


def seen(server: Server) -> list[int]:
    assert server.backend.prompts
    return list(server.backend.prompts[-1])


BEFORE, AFTER = "def f(n):\n    ", "\n\nf(1)"
AROUND = [PREFIX, *BEFORE.encode(), SUFFIX, *AFTER.encode(), MIDDLE]


def test_suffix_asks_for_the_hole(server: Server) -> None:
    answer = server.complete(prompt=BEFORE, suffix=AFTER, max_tokens=20)
    assert answer.json()["choices"][0]["text"] == "return n"
    assert seen(server) == AROUND
    assert answer.json()["usage"]["prompt_tokens"] == len(AROUND)
    assert server.backend.options is not None
    assert {END, PREFIX, SUFFIX, MIDDLE, FILENAME} == set(server.backend.options.end_token_ids)
    server.complete(prompt=BEFORE + "<fim_middle>", suffix="", max_tokens=20)
    assert seen(server) == [PREFIX, *BEFORE.encode(), *b"<fim_middle>", SUFFIX, MIDDLE], "a hole at the end"
    server.complete(prompt=[97], suffix="", max_tokens=20)
    assert seen(server) == [97], "an empty suffix is none where there can be no hole"


def test_echo_with_logprobs_shows_what_the_model_got(server: Server) -> None:
    body = {"prompt": BEFORE, "suffix": AFTER, "echo": True, "max_tokens": 1}
    assert server.complete(**body).json()["choices"][0]["text"] == BEFORE + "r"
    [choice] = server.complete(**body, logprobs=0).json()["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert choice["text"].startswith("<fim_prefix>def f")


def test_mistrals_form(server: Server) -> None:
    answer = server.post("/v1/fim/completions", prompt=BEFORE, suffix=AFTER, max_tokens=20).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "return n"}
    assert seen(server) == AROUND
    events, end = server.stream("/v1/fim/completions", prompt=BEFORE, suffix=AFTER, max_tokens=20)
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == "return n"
    assert end == "[DONE]"
    server.post("/v1/fim/completions", prompt=BEFORE, max_tokens=20)
    assert seen(server) == [PREFIX, *BEFORE.encode(), SUFFIX, MIDDLE], "always a hole, at the end too"


def test_llama_cpps_form(server: Server) -> None:
    body: dict[str, Any] = {
        "input_prefix": "def f(n):\n",
        "prompt": "    ",
        "input_suffix": AFTER,
        "n_predict": 20,
        "temperature": 0.0,
    }
    answer = server.post("/infill", **body).json()
    assert (answer["content"], answer["stop"], answer["stop_type"]) == ("return n", True, "eos")
    assert seen(server) == AROUND
    assert (answer["tokens_predicted"], answer["tokens_evaluated"]) == (9, len(AROUND))
    assert answer["timings"]["predicted_n"] == 9
    events, last = server.stream("/infill", **body)
    assert "[DONE]" not in last, "llama.cpp's streams end with an event that says stop"
    assert "".join(event["content"] for event in events) + "" == "return n"
    assert '"stop":true' in last
    extra = [{"filename": "a.py", "text": "A = 1"}, {"filename": "b.py", "text": "B = 2"}]
    server.post("/infill", **body, input_extra=extra)
    files = [FILENAME, *b"a.py\nA = 1\n", FILENAME, *b"b.py\nB = 2\n"]
    assert seen(server) == files + AROUND


def test_a_time_budget_ends_at_a_line(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [*b"a = 1\nb = 2\nc = 3", END])
    server.engine.load(server.backend)
    body = {"input_prefix": "", "input_suffix": "", "n_predict": 50, "t_max_predict_ms": 1e-6}
    answer = server.post("/infill", **body).json()
    assert (answer["content"], answer["stop_type"]) == ("a = 1\n", "limit")
    server.engine.close()


def test_special_tokens_in_code_stay_text(server: Server) -> None:
    code = "x = '<fim_suffix>'  # <|endoftext|>"
    server.complete(prompt=code, suffix=code, max_tokens=1)
    ids = seen(server)
    assert [token_id for token_id in ids if token_id >= 256] == [PREFIX, SUFFIX, MIDDLE]
    assert bytes(token_id for token_id in ids if token_id < 256) == code.encode() * 2
    server.complete(prompt=code, suffix=code, max_tokens=1, parse_special=True)
    assert seen(server).count(SUFFIX) == 3
    # Editors write the tokens into a plain prompt themselves.
    server.complete(prompt="<fim_prefix>a<fim_suffix>b<fim_middle>", max_tokens=1)
    assert seen(server) == [PREFIX, ord("a"), SUFFIX, ord("b"), MIDDLE]
    server.complete(prompt="<fim_prefix>", max_tokens=1, parse_special=False)
    assert bytes(seen(server)) == b"<fim_prefix>"


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (10, 5, (10, 5)),  # fits
        # Three parts to one: 75 and 25; what typing moves is cut in steps of 100 // 8 = 12.
        (75, 100, (75, 100 - 84)),
        (76, 100, (76 - 12, 25)),
        (87, 100, (87 - 12, 25)),
        (88, 100, (88 - 24, 25)),
        (100, 10, (100 - 12, 10)),  # a short suffix leaves its share to the prefix
        (20, 200, (20, 200 - 120)),  # and the other way round
        (0, 200, (0, 200 - 108)),
        (200, 0, (200 - 108, 0)),
    ],
)
def test_a_short_context_keeps_what_is_near_the_hole(
    fim: FillInMiddle, before: int, after: int, kept: tuple[int, int]
) -> None:
    prefix, suffix = "b" * before + "B", "A" + "a" * after
    ids = fim.prompt(prefix[1:] if before else "", suffix[: after and after + 1][:after], 103)
    middle = ids.index(SUFFIX)
    assert (middle - 1, len(ids) - middle - 2) == kept
    if before:
        assert ids[middle - 1] == ord("B")
    if after:
        assert ids[middle + 1] == ord("A")


@pytest.mark.parametrize("order", ["prefix-first", "suffix-first"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_most_of_the_prompt_stays_while_somebody_types(order: FimOrder, data: st.DataObject) -> None:
    room, typed = data.draw(st.integers(1200, 2500)), data.draw(st.integers(2, 3))
    after = "a" * data.draw(st.integers(0, 2 * room))
    # Suffix first, that holds for a file that grows into its context too.
    start = data.draw(st.integers(room if order == "prefix-first" else 0, 2 * room))
    fim = FillInMiddle.find(Encoder(byte_tokenizer(), [END]), order)
    assert fim is not None
    code = "".join(random.Random(0).choices("abcdefgh \n", k=start + 600))
    prompts = [fim.prompt(code[:end], after, room + 3) for end in range(start, len(code), typed)]
    assert max(map(len, prompts)) <= room + 3
    shares = [shared(*pair) / len(pair[1]) for pair in pairwise(prompts)]
    assert sum(shares) / len(shares) >= {"prefix-first": 0.7, "suffix-first": 0.95}[order]


def test_a_cut_is_counted(server: Server) -> None:
    for length, cut in ((10, 0), (200, 1), (201, 2)):
        assert server.complete(prompt="x" * length, suffix="y", max_tokens=20).status_code == 200
        assert server.metric("pangu_prompts_cut_total") == cut


def test_the_suffix_can_come_first(tmp_path: Path) -> None:
    server = Server(tmp_path, lambda _: [*b"return n", FILENAME, *b"next.py"], fim_order="suffix-first")
    server.engine.load(server.backend)
    around = [PREFIX, SUFFIX, *AFTER.encode(), MIDDLE, *BEFORE.encode()]
    answers = [
        server.complete(prompt=BEFORE, suffix=AFTER).json()["choices"][0]["text"],
        server.post("/infill", input_prefix=BEFORE, input_suffix=AFTER, n_predict=20).json()["content"],
    ]
    assert list(map(list, server.backend.prompts)) == [around, around]
    assert answers == ["return n"] * 2, "the hole ends where the model turns to the next file"
    extra = [{"filename": "a.py", "text": "A = 1"}]
    server.post("/infill", input_prefix=BEFORE, input_suffix=AFTER, n_predict=20, input_extra=extra)
    assert seen(server) == [FILENAME, *b"a.py\nA = 1\n", *around]
    server.engine.close()


@pytest.mark.parametrize(
    ("order", "stop", "suffix_first"),
    [
        (None, "\n", True),
        (None, ["x", "\n"], True),
        (None, "\n\n", False),
        (None, None, False),
        ("prefix-first", "\n", False),
        ("suffix-first", None, True),
    ],
)
def test_qwen_fills_a_line_suffix_first(
    server: Server, order: FimOrder | None, stop: str | list[str] | None, suffix_first: bool
) -> None:
    """It fills a line better so, and does not end a longer hole."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<|fim_pad|>"])
    server.engine.fim = FillInMiddle.find(Encoder(tokenizer, [END]), order)
    server.complete(prompt=BEFORE, suffix=AFTER, stop=stop)
    before, after = [PREFIX, SUFFIX, *AFTER.encode(), MIDDLE, *BEFORE.encode()], AROUND
    assert seen(server) == (before if suffix_first else after)


def test_files_take_what_room_is_left_nearest_first(fim: FillInMiddle) -> None:
    files = [SourceFile("a", "x" * 50), SourceFile("b", "y" * 10)]
    assert fim.prompt("p", "s", 5 + 14, files=files) == [
        *(FILENAME, *b"b\n", *b"y" * 10, ord("\n")),
        *(PREFIX, ord("p"), SUFFIX, ord("s"), MIDDLE),
    ]
    assert FILENAME not in fim.prompt("p", "s", 5 + 13, files=files)


def test_a_file_that_is_cut_leaves_no_room_for_others(fim: FillInMiddle) -> None:
    """Else one would come and go with the steps, and the whole prompt with it."""
    ids = fim.prompt("p" * 101, "", 103, files=[SourceFile("b", "y")])
    assert (len(ids), FILENAME in ids) == (103 - 11, False)


def test_no_room_at_all_is_an_error(fim: FillInMiddle) -> None:
    assert fim.prompt("", "", 3) == [PREFIX, SUFFIX, MIDDLE]
    with pytest.raises(ContextLengthExceeded):
        fim.prompt("x", "", 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_recognised_by_their_tokens(family: tuple[str, str, str]) -> None:
    tokenizer = Tokenizer.from_str(byte_tokenizer().to_str().replace("fim_", "gone_"))
    assert FillInMiddle.find(Encoder(tokenizer, [END])) is None
    tokenizer.add_special_tokens([*family])
    encoder = Encoder(tokenizer, [END])
    fim = FillInMiddle.find(encoder)
    assert fim is not None
    ids = [encoder.token_id(name) for name in family]
    for line in (False, True):
        assert fim.prompt("p", "s", 9, line=line) == [ids[0], ord("p"), ids[1], ord("s"), ids[2]]


def test_a_model_without_fim_tokens_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path, lambda _: [END])
    server.engine.fim = None
    server.engine.load(server.backend)
    for answer in (
        server.complete(suffix="x"),
        server.post("/v1/fim/completions", prompt="x"),
        server.post("/infill"),
    ):
        assert answer.status_code == 400
        assert "fill-in-the-middle" in answer.json()["error"]["message"]
    assert server.complete(suffix="").status_code == 200, "an empty suffix is none"
    assert not server.client.get("/v1/models").json()["data"][0]["fim"]
    server.engine.close()


def test_more_tokens_than_context_is_refused(server: Server) -> None:
    answer = server.post("/infill", input_prefix="x", input_suffix="", n_predict=CONTEXT_LENGTH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert server.post("/infill", input_prefix="x", input_suffix="", n_predict=-1).status_code == 200
    assert server.post("/infill", input_prefix="x", input_suffix="", n_predict=0).json()["content"] == ""
