"""Calibration data: rows of token ids from code or text, the same ones for the same seed.

Long documents are cut into pieces and every document gives one before any gives a second, so that one big
file does not make up the sample. Rows then take turns in the forms in which a model is asked: a prompt for a hole where
the vocabulary has FIM tokens, on request a conversation, and plain text. Control tokens are unlike all others inside
the model, and what quantization loses in a form depends on which forms it has seen.

Loads no framework; knows nothing of the quantizers.
"""

import hashlib
import json
import platform
import random
from argparse import BooleanOptionalAction
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_convert.code_text import library_file, library_files
from pangu_convert.conversation import ChatFormat, as_chats, chat_format
from pangu_convert.infilling import fim_tokens, with_hole
from pangu_training.stage.checkpoint import TOKENIZER, Checkpoint
from pangu_training.stage.errors import CheckpointError, PanguError
from pangu_training.stage.options import option

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CODE = "code"  # the default source: what code models are used on, and there on every machine
CONTENT_FIELD = "content"  # what code corpora call their text
ROW_TOKENS, LEAST_ROW_TOKENS = 256, 16  # gptqmodel drops rows of 10 tokens and fewer


class CalibrationError(PanguError):
    """The calibration source cannot be read, or holds too little text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """Rows of one length, and where they come from."""

    source: str
    rows: tuple[tuple[int, ...], ...]
    documents: int  # that the rows were drawn from
    holes: int  # rows that are prompts for a hole
    chats: int  # rows that are conversations

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows."""
        return sum(len(row) for row in self.rows)

    @property
    def tokens_sha256(self) -> str:
        """The sha256 of all token ids in order, each as four little-endian bytes."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(b"".join(token_id.to_bytes(4, "little") for token_id in array("I", row)))
        return digest.hexdigest()

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "source": self.source,
            "documents": self.documents,
            "rows": len(self.rows),
            "rows_with_hole": self.holes,
            "rows_as_chat": self.chats,
            "sequence_length": len(self.rows[0]),
            "tokens": self.num_tokens,
            "tokens_sha256": self.tokens_sha256,
        }


def text_place(source: str) -> Path | None:
    """The file or folder that `source` names, if it names one."""
    return None if source == CODE else Path(source)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """Where the rows come from, and how many there are."""

    calibration: str = option(
        "'code' (Python's standard library), a .jsonl file, a text file, or a folder",
        CODE,
        metavar="SOURCE",
        reads=text_place,
    )
    text_field: str = option("a .jsonl record's text; else 'content'", "text")
    samples: int = option("calibration rows", 16)
    sequence_length: int | None = option(
        f"tokens a calibration row (default: {ROW_TOKENS}, or the context length if that is less)", None
    )
    holes: bool = option("make some rows prompts for a hole, if the model has FIM tokens", True)
    chat: bool = option(
        "make some rows conversations, in the model's chat template (default: %(default)s)",
        False,
        action=BooleanOptionalAction,
    )
    seed: int = option("chooses the calibration text", 0)


def calibration_data(options: CalibrationOptions, checkpoint: Checkpoint) -> CalibrationData:
    """The rows that `options` ask for, in the tokens of `checkpoint`.

    Raises:
        CalibrationError, CheckpointError: there is too little text, or a row does not fit the model.
    """
    from pangu_training.stage.vocabulary import read_tokenizer

    if options.samples < 1:
        raise CheckpointError("--samples must be at least 1")
    row_tokens = options.sequence_length
    if row_tokens is None:
        row_tokens = min(ROW_TOKENS, checkpoint.context_length)
    if not LEAST_ROW_TOKENS <= row_tokens <= checkpoint.context_length:
        raise CheckpointError(
            f"--sequence-length {row_tokens} is not within {LEAST_ROW_TOKENS} to "
            f"{checkpoint.context_length}, the context length of {checkpoint.path}"
        )
    data = read_calibration(
        options.calibration,
        read_tokenizer(checkpoint.path / TOKENIZER),
        text_field=options.text_field,
        num_rows=options.samples,
        row_tokens=row_tokens,
        separator_id=checkpoint.end_token_ids[-1],
        seed=options.seed,
        holes=options.holes,
        chat=chat_format(checkpoint.path) if options.chat else None,
    )
    if max(map(max, data.rows)) >= checkpoint.vocabulary_size:
        raise CalibrationError(
            f"{data.source} holds tokens that the model has no row for (its embedding has "
            f"{checkpoint.vocabulary_size}): give another --calibration"
        )
    return data


def read_calibration(
    source: str,
    tokenizer: "Tokenizer",
    *,
    text_field: str,
    num_rows: int,
    row_tokens: int,
    separator_id: int,
    seed: int,
    holes: bool,
    chat: ChatFormat | None = None,
) -> CalibrationData:
    """Draw `num_rows` rows of exactly `row_tokens` tokens; documents are parted by `separator_id`.

    `source` is `code` (Python's standard library), a .jsonl file, a text file or a folder of text files.

    Raises:
        CalibrationError: no such file, no text in it, or too little.
    """
    texts = [library_file(path) for path in library_files()] if source == CODE else _texts(source, text_field)
    name = (
        f"{CODE}: Python {platform.python_version()} standard library"
        if source == CODE
        else Path(source).name
    )
    choice = random.Random(seed)
    choice.shuffle(texts)
    rows: list[tuple[int, ...]] = []
    buffer: list[int] = []
    for piece in _pieces(texts, tokenizer, row_tokens, choice):
        buffer += [*piece, separator_id]
        while len(buffer) >= row_tokens and len(rows) < num_rows:
            rows.append(tuple(buffer[:row_tokens]))
            del buffer[:row_tokens]
        if len(rows) == num_rows:
            break
    else:
        raise CalibrationError(
            f"{source} has too little text: it gives {len(rows)} rows of {row_tokens} tokens, {num_rows} are "
            "asked for; give more, or lower --samples or --sequence-length"
        )
    tokens = fim_tokens(tokenizer) if holes else None
    forms: dict[str, Callable[[list[tuple[int, ...]]], list[tuple[int, ...]]]] = {}
    if tokens is not None:
        forms["holes"] = lambda rows: [with_hole(row, tokens, choice)[0] for row in rows]
    if chat is not None:
        forms["chats"] = lambda rows: [ids for ids, _ in as_chats(rows, tokenizer, chat, choice)]
    counts = {"holes": 0, "chats": 0}
    turns = len(forms) + 1  # the last is plain text's
    for turn, (form, change) in enumerate(forms.items()):
        rows[turn::turns] = change(rows[turn::turns])
        counts[form] = len(rows[turn::turns])
    return CalibrationData(source=name, rows=tuple(rows), documents=len(texts), **counts)


def _texts(source: str, text_field: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        texts = [text for file in files if (text := _plain_text(file)) is not None]
    elif not path.is_file():
        raise CalibrationError(f"--calibration {source} is not {CODE!r}, nor a file or folder that exists")
    elif path.suffix == ".jsonl":
        texts = list(_json_texts(path, text_field))
    else:
        text = _plain_text(path)
        if text is None:
            raise CalibrationError(f"{source} is not UTF-8 text: give a text, .jsonl or source file")
        texts = [text]
    if not any(text.strip() for text in texts):
        raise CalibrationError(f"{source} holds no text to calibrate on")
    return texts


def _plain_text(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _json_texts(path: Path, text_field: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise CalibrationError(f"{path}, line {number} is not JSON ({error})") from None
            text = record.get(text_field, record.get(CONTENT_FIELD)) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise CalibrationError(
                    f"{path}, line {number} has no text in its field {text_field!r}: name it with --text-field"
                )
            yield text


def _pieces(
    texts: Sequence[str], tokenizer: "Tokenizer", piece_tokens: int, choice: random.Random
) -> Iterator[list[int]]:
    """A random piece of every document, then a second one of those that have more, and so on."""
    rest: list[list[list[int]]] = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        pieces = [ids[start : start + piece_tokens] for start in range(0, len(ids), piece_tokens)]
        choice.shuffle(pieces)
        if pieces:
            yield pieces.pop()
            rest.append(pieces)
    while rest:
        rest = [pieces for pieces in rest if pieces]
        yield from (pieces.pop() for pieces in rest)
