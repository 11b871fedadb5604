"""Texts, pieces of streams and log-probabilities tell the same of the same tokens, in vocabularies of every kind."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import EXAMPLES
from support.llama2 import llama2_tokenizer
from support.scripted import END, byte_tokenizer, logits
from support.served import Server
from tokenizers import Tokenizer, decoders, models

from pangu_server.backends.sampling import Logits
from pangu_server.encoding import Encoder
from pangu_server.pieces import Pieces
from pangu_server.text import Detokenizer

LLAMA2 = llama2_tokenizer()
EOS, SPECIAL = 2, (0, 1, 2)
VOCABULARY = LLAMA2.get_vocab_size()
ENCODER = Encoder(LLAMA2, [EOS])
BYTES = byte_tokenizer()
# bytes of characters, whole ones and halves; pieces with and without a blank; special tokens
IDS = st.one_of(st.integers(0, VOCABULARY - 1), st.integers(0, 258), st.sampled_from([0, 1, 2, 29871, 13]))
TEXTS = st.text(st.sampled_from("ab <>/s_é😀\n\t\ufffd"), max_size=12)


def metaspace() -> Tokenizer:
    """The newer form of such a vocabulary."""
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0, "▁hello": 1, "▁world": 2, "s": 3, "▁": 4}, merges=[]))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


@pytest.mark.parametrize("tokenizer", [LLAMA2, BYTES, metaspace()], ids=["llama2", "bytes", "metaspace"])
@pytest.mark.parametrize("skip_special", [True, False])
@given(data=st.data())
def test_pieces_join_to_the_decoding(tokenizer: Tokenizer, skip_special: bool, data: st.DataObject) -> None:
    pieces = Pieces(tokenizer)
    size = tokenizer.get_vocab_size() + 2  # a model may have more tokens than its tokenizer
    ids = data.draw(st.lists(IDS.map(lambda token_id: token_id % size), max_size=12))
    stream = Detokenizer(pieces, [], skip_special=skip_special)
    text = "".join(stream.push(token_id) for token_id in ids) + stream.flush()
    whole = tokenizer.decode(ids, skip_special_tokens=skip_special)
    # Of bytes that are no character the library reads a whole row as U+FFFD, also the characters in it.
    assert text == whole or "\ufffd" in whole
    assert len(text) == stream.length
    if not skip_special:
        assert pieces.join(ids) == text
    joined = b"".join(pieces.of(token_id, first=not place) for place, token_id in enumerate(ids))
    if not skip_special and all(tokenizer.id_to_token(token_id) is not None for token_id in ids):
        assert joined.decode(errors="replace") == text


def test_a_character_survives_the_bytes_behind_it() -> None:
    e_acute, broken = [3 + 0xC3, 3 + 0xA9], 3 + 0xFF
    stream = Detokenizer(Pieces(LLAMA2), [1])
    assert [stream.push(token_id) for token_id in [*e_acute, broken]] == ["", "é", "\ufffd"]


@given(TEXTS, TEXTS, st.booleans())
def test_a_text_cut_anywhere_has_the_same_text(before: str, behind: str, parse_special: bool) -> None:
    if parse_special:
        before, behind = before.replace("<", "("), behind.replace("<", "(")
    ids = ENCODER.text(before, parse_special=parse_special)
    assert ENCODER.decode(ids) == before
    ids += ENCODER.text(behind, parse_special=parse_special, begins=not before)
    assert ENCODER.decode(ids) == before + behind
    assert not {1, 2} & set(ids), "a name in guarded text is text"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Llama 2's vocabulary; answers what `script` is set to."""
    server = Server(tmp_path_factory.mktemp("llama2"), lambda _: [EOS], LLAMA2, EOS)
    server.backend.logits = llama2_logits
    server.engine.load(server.backend)
    yield server
    server.engine.close()


def llama2_logits(token_id: int) -> Logits:
    """This token, then those that write the same or nearly the same."""
    values = np.full(VOCABULARY, -50, np.float32)
    name = LLAMA2.id_to_token(token_id) or ""
    alike = [name.lstrip("▁"), f"▁{name.lstrip('▁')}", *(f"<0x{byte:02X}>" for byte in name.encode()[:8])]
    ids = [token_id, *(LLAMA2.token_to_id(one) for one in alike), *range(60, 90)]
    for rank, one in enumerate(dict.fromkeys(one for one in ids if one is not None)):
        values[one] = -rank
    return values


def raw(token: str) -> bytes:
    """The bytes that a token of `logprobs` says it is."""
    if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", token):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode()


@settings(max_examples=EXAMPLES)
@given(
    prompt=TEXTS | st.lists(IDS, min_size=1, max_size=5),
    ids=st.lists(IDS.filter(lambda token_id: token_id != EOS), max_size=8),
    echo=st.booleans(),
    stream=st.booleans(),
    skip_special=st.booleans(),
    add_special=st.booleans(),
)
def test_log_probabilities_are_of_the_text(
    server: Server,
    prompt: str | list[int],
    ids: list[int],
    echo: bool,
    stream: bool,
    skip_special: bool,
    add_special: bool,
) -> None:
    server.backend.script = lambda _: [*ids, EOS]
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": 20,
        "logprobs": 20,
        "echo": echo,
        "skip_special_tokens": skip_special,
        "add_special_tokens": add_special,
        "return_token_ids": True,
    }
    if stream:
        choices = [event["choices"][0] for event in server.stream(**body)[0]]
    else:
        choices = server.complete(**body).json()["choices"]
    text = "".join(choice["text"] for choice in choices)
    tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
    tops = [top for choice in choices for top in choice["logprobs"]["top_logprobs"]]
    offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
    generated = [token_id for choice in choices for token_id in choice["token_ids"]]
    prompt_ids = choices[0]["prompt_token_ids"]
    assert all("prompt_token_ids" not in choice for choice in choices[1:])
    assert generated == [*ids, EOS]
    assert list(server.backend.prompts[-1]) == prompt_ids
    assert tokens.pop() == "</s>"
    echoed = tokens[: len(tokens) - len(ids)]
    answer = [
        token
        for token, token_id in zip(tokens[len(echoed) :], ids, strict=True)
        if not (skip_special and token_id in SPECIAL)
    ]
    assert len(echoed) == (len(prompt_ids) if echo else 0)
    assert text == "".join(b"".join(map(raw, part)).decode(errors="replace") for part in (echoed, answer))
    assert offsets == sorted(offsets)
    for token, top in zip(tokens[len(echoed) :], tops[len(echoed) :], strict=False):
        assert len(top) == 20, "no two have one name"
        assert token in top


def test_a_piece_and_its_twin_without_a_blank_are_two_tokens(server: Server) -> None:
    [spaced] = LLAMA2.encode("return", add_special_tokens=False).ids
    server.backend.script = lambda _: [spaced, EOS]
    [choice] = server.complete(prompt="def f():", logprobs=20).json()["choices"]
    top = choice["logprobs"]["top_logprobs"][0]
    assert choice["logprobs"]["tokens"][0] == " return"
    assert {" return", "return"} <= set(top)
    assert len(top) == 20


def test_bytes_of_an_emoji_are_told_as_bytes(server: Server) -> None:
    [choice] = server.complete(prompt="😀é", echo=True, logprobs=0, max_tokens=0).json()["choices"]
    assert choice["logprobs"]["tokens"][:3] == ["<s>", " ", "bytes:\\xf0"]
    assert choice["text"] == "<s> 😀é"


def test_a_text_that_names_its_own_beginning_can_say_so(server: Server) -> None:
    server.complete(prompt="<s>def add")
    assert list(server.backend.prompts[-1])[:2] == [1, 1]
    server.complete(prompt="<s>def add", add_special_tokens=False)
    assert list(server.backend.prompts[-1])[:2] == [1, LLAMA2.token_to_id("▁def")]


@pytest.fixture
def special(tmp_path: Path) -> Iterator[Server]:
    """Says two lines, with the special tokens 260 and 256 (end of text) in it."""
    server = Server(tmp_path, lambda _: [*b"a = 1", 260, *b"\nb = 2", END, *b"c"])
    server.engine.load(server.backend)
    yield server
    server.engine.close()


@pytest.mark.parametrize(
    ("fields", "text", "tokens"),
    [
        ({}, "a = 1\nb = 2", 13),
        ({"stop": "<filename>"}, "a = 1", 6),
        ({"stop": ["zzz", "1<filename>\nb"]}, "a = ", 8),
        ({"stop": "1\nb"}, "a = ", 8),
        ({"stop": "<filename>", "include_stop_str_in_output": True}, "a = 1<filename>", 6),
        ({"stop": "= 1", "include_stop_str_in_output": True}, "a = 1", 5),
        ({"skip_special_tokens": False}, "a = 1<filename>\nb = 2", 13),
        (
            {"skip_special_tokens": False, "include_stop_str_in_output": True},
            "a = 1<filename>\nb = 2<|endoftext|>",
            13,
        ),
        ({"stop_token_ids": [260]}, "a = 1", 6),
        ({"stop_token_ids": [ord("=")], "include_stop_str_in_output": True}, "a =", 3),
        ({"stop_token_ids": [ord("c")], "ignore_eos": True}, "a = 1\nb = 2", 14),
        ({"stop": "<|endoftext|>", "ignore_eos": True}, "a = 1\nb = 2", 13),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_ends_an_answer_and_what_its_text_shows(
    special: Server, fields: dict[str, Any], text: str, tokens: int, stream: bool
) -> None:
    if stream:
        events, _ = special.stream(**fields, return_token_ids=True, logprobs=0)
        choices = [event["choices"][0] for event in events]
    else:
        choices = special.complete(**fields, return_token_ids=True, logprobs=0).json()["choices"]
    assert "".join(choice["text"] for choice in choices) == text
    assert choices[-1]["finish_reason"] == "stop"
    ids = [token_id for choice in choices for token_id in choice["token_ids"]]
    assert ids == [*b"a = 1", 260, *b"\nb = 2", END, *b"c"][:tokens]
    if fields.get("include_stop_str_in_output"):
        reported = [token for choice in choices for token in choice["logprobs"]["tokens"]]
        assert "".join(reported).startswith(text)
    assert logits(0).size == 261
