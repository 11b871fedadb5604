"""Text that leaves the server never splits a character and ends exactly before a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted import byte_tokenizer
from tokenizers import Tokenizer, decoders, models

from pangu_server.pieces import Pieces
from pangu_server.text import Detokenizer, StopStrings

BYTES = byte_tokenizer()
ALPHABET = "ab\n"  # few letters, so that stop strings overlap and repeat


def cut(text: str, stops: list[str]) -> str:
    """The reference: everything before the first stop string."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


@given(
    pieces=st.lists(st.text(ALPHABET, max_size=4), max_size=12),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4),
)
def test_text_is_cut_at_the_first_stop_wherever_the_pieces_break(pieces: list[str], stops: list[str]) -> None:
    buffer = StopStrings(stops)
    sent = whole = ""
    for piece in pieces:
        sent, whole = sent + buffer.push(piece), whole + piece
        if buffer.found:
            break  # what would follow could complete a longer stop that begins earlier
    assert buffer.found == any(stop in whole for stop in stops)
    assert sent + buffer.flush() == cut(whole, stops)


def test_text_is_held_back_only_while_it_can_be_a_stop() -> None:
    buffer = StopStrings(["\n\ndef"])
    assert buffer.push("a\n") == "a"
    assert buffer.push("b") == "\nb"
    assert buffer.push("\n\nd") == ""
    assert buffer.push("ef f") == ""
    assert buffer.found
    assert buffer.push("more") == buffer.flush() == ""


def test_the_earliest_of_several_stops_cuts() -> None:
    buffer = StopStrings(["later", "now"])
    assert buffer.push("x now and later") == "x "


@given(
    ids=st.lists(st.integers(0, 256), max_size=40),
    prompt=st.text(max_size=8).map(lambda text: BYTES.encode(text).ids),
)
def test_pieces_join_to_the_whole_decoding(ids: list[int], prompt: list[int]) -> None:
    detokenizer = Detokenizer(Pieces(BYTES), prompt)
    sent = "".join(detokenizer.push(token_id) for token_id in ids) + detokenizer.flush()
    assert sent == BYTES.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=20))
def test_no_piece_ends_inside_a_character(text: str) -> None:
    detokenizer = Detokenizer(Pieces(BYTES), [])
    pieces = [detokenizer.push(token_id) for token_id in BYTES.encode(text).ids]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


def test_a_character_comes_when_its_last_byte_does() -> None:
    detokenizer = Detokenizer(Pieces(BYTES), BYTES.encode("say ").ids)
    assert [detokenizer.push(byte) for byte in "🙂".encode()] == ["", "", "", "🙂"]


def test_a_prompt_that_ends_inside_a_character_does_not_show() -> None:
    detokenizer = Detokenizer(Pieces(BYTES), list("abcé".encode())[:-1])
    assert detokenizer.push(ord("x")) + detokenizer.flush() == "x"


@pytest.mark.parametrize(("prompt", "expected"), [([1], " world"), ([], "world")])
def test_a_leading_space_is_kept_inside_a_text(prompt: list[int], expected: str) -> None:
    # Llama 2's tokenizer decodes a first token without its space.
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0, "▁hello": 1, "▁world": 2}, merges=[]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    detokenizer = Detokenizer(Pieces(tokenizer), prompt)
    assert detokenizer.push(2) + detokenizer.flush() == expected


def test_part_of_the_name_of_a_special_token_is_no_stop_string() -> None:
    stops = StopStrings(["ff", "x<fim_suffix>"])
    assert stops.push("a") + stops.push("<fim_suffix>", hidden=True) + stops.push("b") == "ab"
    assert not stops.found
    assert stops.push("x") == ""
    assert stops.push("<fim_suffix>", hidden=True) == ""
    assert stops.found
