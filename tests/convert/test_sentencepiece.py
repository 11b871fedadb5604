"""SentencePiece vocabularies of GGUF files: texts become the pieces that SentencePiece's own rule joins."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_convert.gguf_file import GgufFile
from pangu_convert.gguf_keys import GgufKeys
from pangu_convert.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    read_vocabulary,
)
from pangu_training.stage.errors import CheckpointError

LETTERS = f"abc{SPACE}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def keys(pieces: list[str], **changes: Any) -> GgufKeys:
    """A vocabulary in Llama 2's order: special tokens, bytes, joined pieces from best to worst, letters."""
    texts = ["<unk>", "<s>", "</s>", *BYTES, *pieces, *LETTERS]
    first = 3 + len(BYTES)
    fields = {
        "model": "llama",
        "pre": "default",
        "tokens": texts,
        "token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(texts) - first)],
        "scores": [*[0.0] * first, *(-float(rank) for rank in range(len(texts) - first))],
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return GgufKeys(GgufFile(parts=(Path("tiny.gguf"),), keys=named, tensors={}))


def read(pieces: list[str], **changes: Any) -> Vocabulary:
    return read_vocabulary(keys(pieces, **changes))


def joined(text: str, pieces: list[str]) -> list[str]:
    """SentencePiece's rule, one step at a time: of all neighbours that make a piece, join the best-scored."""
    symbols = list(SPACE + text.replace(" ", SPACE)) if text else []
    while True:
        pairs = [
            (pieces.index(left + right), -len(left), place)
            for place, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in pieces
        ]
        if not pairs:
            return symbols
        place = min(pairs)[2]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


@given(
    st.lists(st.text(LETTERS, min_size=2, max_size=5), unique=True, min_size=1, max_size=30),
    st.text("abc ", max_size=30),
)
def test_the_best_pair_is_joined_first(pieces: list[str], text: str) -> None:
    tokenizer = read(pieces).tokenizer
    assert tokenizer.encode(text).tokens == ["<s>", *joined(text, pieces)]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_what_is_no_piece_becomes_bytes() -> None:
    tokenizer = read(["ab"]).tokenizer
    assert tokenizer.encode("é", add_special_tokens=False).tokens == [SPACE, "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab é\n  c").ids) == "ab é\n  c"


def test_special_tokens_are_whole_and_put_where_the_file_says() -> None:
    vocabulary = read(["ab"])
    assert (vocabulary.beginning, vocabulary.ends, vocabulary.unknown) == (1, (2,), 0)
    assert vocabulary.tokenizer.encode("a</s>").tokens == ["<s>", SPACE, "a", "</s>"]
    around = read(["ab"], add_bos_token=False, add_eos_token=True).tokenizer
    assert around.encode("a").tokens == [SPACE, "a", "</s>"]
    bare = read(["ab"], add_bos_token=False, add_space_prefix=False).tokenizer
    assert bare.encode("a b").tokens == ["a", SPACE, "b"]
    assert bare.decode(bare.encode(" a b").ids) == " a b"


def test_a_token_that_the_user_defined_is_whole() -> None:
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, USER_DEFINED, *[NORMAL] * len(LETTERS)]
    tokenizer = read(["cab"], token_type=types).tokenizer
    assert tokenizer.encode("bcab", add_special_tokens=False).tokens == [SPACE, "b", "cab"]
    assert tokenizer.decode(tokenizer.encode("bcab").ids) == "bcab"


def test_a_token_that_the_file_names_is_not_text() -> None:
    # CodeLlama's files name the tokens to fill a gap, and store them as ordinary pieces
    tokenizer = read(["ab", "ca"], prefix_token_id=260).tokenizer
    assert tokenizer.encode("bca", add_special_tokens=False).tokens == [SPACE, "b", "ca"]
    assert tokenizer.decode([260]) == ""
    assert tokenizer.decode([259]) == "ab"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scores": [0.0] * 264}, "scores does not order"),
        ({"scores": []}, "scores does not order"),
        ({"token_type": [1] * 3}, "token_type has 3 entries for 264 tokens"),
        ({"token_type": [9] * 264}, "token_type has the unknown type 9"),
        ({"pre": "novel"}, "tokenizer (model llama, pre novel)"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is True"),
        ({"precompiled_charsmap": [1, 2]}, "precompiled_charsmap is [1, 2]"),
        ({"eos_token_id": None}, "eos_token_id is missing"),
        ({"bos_token_id": None}, "bos_token_id is missing"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
    ],
)
def test_a_vocabulary_that_cannot_be_read_right_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        read(["ab"], **changes)
    assert expected in str(refused.value)


def test_a_piece_twice_is_refused() -> None:
    with pytest.raises(CheckpointError, match="tokens has 'ab' twice"):
        read(["ab", "ab"])
