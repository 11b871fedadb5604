"""Reading grammars: by which bytes, in which process, and llama.cpp's form."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grammars import Compiler
from support.scripted import END, VOCABULARY_SIZE, byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models

from pangu_server.backends.seam import Constraint
from pangu_server.errors import GenerationFailed, RequestError
from pangu_server.grammar import checking
from pangu_server.grammar.checking import Checker, line_of
from pangu_server.grammar.compiling import REMEMBERED
from pangu_server.grammar.vocabulary import vocabulary_of
from pangu_server.grammar.wanted import Wanted


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    compiler = Compiler(byte_tokenizer(), [END], VOCABULARY_SIZE)
    yield compiler
    compiler.close()


def matches(constraint: Constraint, text: str) -> bool:
    """Whether the bytes of `text`, which are tokens here, and an end are allowed one after the other."""
    matcher = constraint.matcher([END])
    for token_id in (*text.encode(), END):
        allowed = matcher.allowed()
        if allowed is None or not allowed[token_id // 8] >> token_id % 8 & 1:
            return False
        assert matcher.accept(token_id)
    return True


def sentencepiece() -> Tokenizer:
    """As Llama 2's: words begin with U+2581, and bytes are tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "é", "▁▁"]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, fuse_unk=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def test_tokens_of_a_byte_level_vocabulary_are_their_bytes() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("    ", special=False)])
    vocabulary = vocabulary_of(tokenizer, VOCABULARY_SIZE + 5, END)
    assert vocabulary.tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert vocabulary.tokens[VOCABULARY_SIZE + 1] == b"    "
    # What controls something is not text, nor is an id without a token.
    text = {*range(256), VOCABULARY_SIZE + 1}
    assert vocabulary.special_token_ids == [i for i in range(VOCABULARY_SIZE + 5) if i not in text]


def test_tokens_of_a_sentencepiece_vocabulary_are_their_bytes() -> None:
    tokenizer = sentencepiece()
    vocabulary = vocabulary_of(tokenizer, tokenizer.get_vocab_size(), 2)
    assert vocabulary.tokens[3:259] == [bytes([byte]) for byte in range(256)]
    assert vocabulary.tokens[259:] == [b" ", b" a", b"b", "é".encode(), b"  "]
    assert vocabulary.special_token_ids == [0, 1, 2]
    compiler = Compiler(tokenizer, [2], tokenizer.get_vocab_size())
    matcher = compiler("regex", "b aé").matcher([2])
    assert [matcher.accept(token_id) for token_id in (261, 260, 3 + 0xC3, 3 + 0xA9)] == [True] * 4
    assert matcher.over
    compiler.close()


def test_a_model_without_an_end_token_serves_all_the_rest() -> None:
    compiler = Compiler(byte_tokenizer(), [VOCABULARY_SIZE], VOCABULARY_SIZE)
    compiler.grammars.prepare(VOCABULARY_SIZE)
    with pytest.raises(RequestError, match="needs an end token"):
        compiler("regex", "a")
    compiler.close()


JSON_GBNF = r"""root   ::= object
value  ::= object | array | string | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws # escapes
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (JSON_GBNF, ['{"a": ["é\\u00e9", true]}', "{}"], ["[]", '{"a":}', '{"a": tru}']),
        (r'root ::= "\u00e9" [\u00e8-\u00ea]+', ["éèê", "éé"], ["é", "éu"]),
        ('root ::= "- " [^\\r\\n]+ "\\n"', ["- é x\n"], ["- \n", "- a"]),
        ('root ::= item{2,3} "."\nitem ::= [[\\]/^-]', ["[].", "/^-."], ["[.", "[]/^."]),
    ],
)
def test_llama_cpps_grammars_are_read(
    compiler: Compiler, grammar: str, good: list[str], bad: list[str]
) -> None:
    constraint = compiler("grammar", grammar)
    assert [text for text in good if not matches(constraint, text)] == []
    assert [text for text in bad if matches(constraint, text)] == []


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4))
@settings(max_examples=30)
def test_choices_match_themselves_and_nothing_else(compiler: Compiler, choices: list[str]) -> None:
    constraint = compiler("choice", choices)
    assert all(matches(constraint, choice) for choice in choices)
    others = {choice[:-1] for choice in choices if choice} | {choice + "x" for choice in choices}
    assert not any(matches(constraint, other) for other in others - set(choices))


@pytest.mark.parametrize(
    ("pattern", "example"),
    [("a/b", "a/b"), (r"[/]\d+", "/1"), ("a|^b$", "b"), ("(é|ü)?x", "éx"), (r'"\\n', '"\\n'), (".{2}", "éx")],
)
@given(text=st.text('ab/x1é\\n"\n', max_size=3))
@settings(max_examples=30)
def test_a_regex_means_what_pythons_means(compiler: Compiler, pattern: str, example: str, text: str) -> None:
    constraint = compiler("regex", pattern)
    assert matches(constraint, example)
    assert matches(constraint, text) == bool(re.fullmatch(pattern, text))


def test_a_grammar_that_was_good_is_not_read_again(compiler: Compiler) -> None:
    compiler("regex", "again")
    child = compiler.grammars._checker._child
    assert child is not None
    child.kill()
    child.wait()
    compiler("regex", "again")
    with pytest.raises(RequestError, match="too long"):  # its last words
        compiler("regex", "never")
    compiler("regex", "another child")
    for number in range(REMEMBERED + 3):
        compiler("regex", f"x{number}")
    assert len(compiler.grammars._good) == REMEMBERED


def test_a_child_that_does_not_start_is_a_fault_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(checking, "__file__", str(tmp_path / "checking.py"))
    checker, wanted = Checker(), Wanted(kind="regex", value="a", param="p")
    with pytest.raises(GenerationFailed, match="log"):
        checker.check(line_of(wanted), wanted)
