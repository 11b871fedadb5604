"""Which weights a token does not read, from real artifacts' files."""

from pathlib import Path

import pytest
from support.commands import pangu_convert
from support.tiny import save_tiny
from tokenizers import Tokenizer

from pangu_bench.embedding import lookup_bytes
from pangu_convert.artifact import read_artifact

WIDTH = 64


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("options", "row_bytes"),
    [
        (("ctranslate2", "--quantization", "int8", "--no-smooth"), WIDTH + 4),  # a float32 scale a row
        (("ctranslate2", "--quantization", "float32"), 4 * WIDTH),
        (("transformers", "--dtype", "bfloat16"), 2 * WIDTH),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_input_embedding_of_its_own_is_not_read(
    tmp_path: Path, starcoder: Tokenizer, options: tuple[str, ...], row_bytes: int, tied: bool
) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", starcoder, "llama", tie_word_embeddings=tied)
    pangu_convert(*options[:1], checkpoint, "--output", tmp_path / "out", *options[1:])
    expected = 0 if tied else row_bytes * starcoder.get_vocab_size()
    assert lookup_bytes(read_artifact(tmp_path / "out")) == expected
