"""Calibration rows: the same for the same seed, from every kind of source, or one clear line."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pangu_convert.calibration import CalibrationData, CalibrationError, read_calibration
from pangu_convert.code_text import NOT_LIBRARY_CODE, library_files
from pangu_convert.conversation import chat_format
from pangu_convert.infilling import fim_tokens
from pangu_training.stage.errors import CheckpointError


def read(source: object, tokenizer: Tokenizer, **changes: Any) -> CalibrationData:
    options = {
        "text_field": "text",
        "num_rows": 3,
        "row_tokens": 16,
        "separator_id": 0,
        "seed": 0,
        "holes": False,
    }
    return read_calibration(str(source), tokenizer, **{**options, **changes})


def test_rows_have_exactly_the_length_asked_for(starcoder: Tokenizer) -> None:
    data = read("code", starcoder, num_rows=5, row_tokens=100)
    assert [len(row) for row in data.rows] == [100] * 5
    assert data.num_tokens == 500


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(starcoder: Tokenizer) -> None:
    hashes = [read("code", starcoder, seed=seed).tokens_sha256 for seed in (7, 7, 8)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_second_row_is_a_prompt_for_a_hole_in_its_text(starcoder: Tokenizer) -> None:
    plain = read("code", starcoder, num_rows=5, row_tokens=100)
    holes = read("code", starcoder, num_rows=5, row_tokens=100, holes=True)
    assert (plain.holes, holes.holes) == (0, 3)
    assert holes.rows[1::2] == plain.rows[1::2]
    tokens = fim_tokens(starcoder)
    assert tokens is not None
    prefix, suffix, middle = tokens
    for row, text in zip(holes.rows[::2], plain.rows[::2], strict=True):
        assert row[0] == prefix
        assert len(row) == 100
        before, behind = row.index(suffix), row.index(middle)
        assert row[1:before] + row[behind + 1 :] + row[before + 1 : behind] == text[:97]
        assert row[behind + 1 :], "a hole is never empty"


def test_holes_conversations_and_plain_text_take_turns(starcoder: Tokenizer) -> None:
    def chat(conversations: Sequence[tuple[str, str]]) -> list[str]:
        return [f"<user>{question}<assistant>{answer}" for question, answer in conversations]

    options = {"num_rows": 8, "row_tokens": 100}
    plain = read("code", starcoder, **options)
    both = read("code", starcoder, **options, holes=True, chat=chat)
    assert (both.record["rows_with_hole"], both.record["rows_as_chat"]) == (3, 3)
    assert both.rows[2::3] == plain.rows[2::3]
    assert {row[0] for row in both.rows[::3]} == {starcoder.token_to_id("<fim_prefix>")}
    for row, text in zip(both.rows[1::3], plain.rows[1::3], strict=True):
        assert len(row) == 100
        question, answer = starcoder.decode(row).split("```<assistant>```python\n")
        code = question.removeprefix("<user>Complete this Python code:\n\n```python\n") + answer
        assert starcoder.decode(text).startswith(code), "cut where the row ends, and nothing is lost before"
    assert read("code", starcoder, **options, chat=chat).chats == 4
    short = read("code", starcoder, **options, chat=lambda all: ["x"] * len(all))
    assert short.rows[0][1:] == plain.rows[0][:99], "a row is full"


def test_the_form_is_the_checkpoints_chat_template(tiny_starcoder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no chat template"):
        chat_format(tiny_starcoder)([("q", "a")])
    folder = shutil.copytree(tiny_starcoder, tmp_path / "chatty")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}{{ eos_token }}"
    )
    assert chat_format(folder)([("q", "a")]) == ["<user>q<assistant>a<|endoftext|>"]
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only systems may speak') }}")
    with pytest.raises(CheckpointError, match="only systems may speak"):
        chat_format(folder)([("q", "a")])


def test_a_vocabulary_without_fim_tokens_has_no_holes() -> None:
    words = Tokenizer(models.WordLevel({"def": 0, "f": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert read("code", words, holes=True).holes == 0


def test_library_files_are_sorted_and_hold_no_tests() -> None:
    files = library_files()
    assert len(files) > 100
    assert not any(NOT_LIBRARY_CODE & {*file.parts} for file in files)


def test_a_long_document_does_not_make_up_the_sample(starcoder: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aaaa bbbb " * 5000)
    (tmp_path / "b.txt").write_text("cccc dddd " * 20)
    data = read(tmp_path, starcoder)
    assert data.documents == 2
    assert any("cccc" in starcoder.decode(row) for row in data.rows)


@pytest.mark.parametrize("field", ["text", "content", "body"])
def test_jsonl_records_give_their_text(starcoder: Tokenizer, tmp_path: Path, field: str) -> None:
    path = tmp_path / "code.jsonl"
    path.write_text("".join(json.dumps({field: "def f():\n    return 1\n" * 9}) + "\n" for _ in range(3)))
    assert len(read(path, starcoder, text_field=field if field == "body" else "text").rows) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "nor a file or folder that exists"),
        ("short.txt", b"x", "too little text: it gives 0 rows of 16 tokens, 3 are asked"),
        ("empty.txt", b" \n", "holds no text"),
        ("binary.txt", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("bad.jsonl", b"{", "line 1 is not JSON"),
        ("other.jsonl", b'{"code": "x"}\n', "no text in its field 'text': name it with --text-field"),
    ],
)
def test_a_bad_source_is_one_clear_line(
    starcoder: Tokenizer, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read(tmp_path / name, starcoder)
