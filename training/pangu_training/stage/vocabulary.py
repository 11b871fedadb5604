"""A checkpoint's tokenizer: read, tried, and which of its tokens the model knows nothing of."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.stage.bounded import bounded
from pangu_training.stage.checkpoint import TOKENIZER, Checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.files import MOST_TOKENIZER_BYTES, read_bytes
from pangu_training.stage.identity import sha256_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a tokenizer is tried on: runs of each character, words, and scripts with letters of several bytes.
SAMPLE = "".join(
    [
        *(chr(code) * 40 for code in range(32, 127)),
        "def add(left, right):\n    return left + right  # a sum\n" * 20,
        *(chr(code) for code in range(0xA0, 0x600, 3)),
        *(chr(code) for code in range(0x4E00, 0x5000, 7)),
        "\U0001f600\U0001f469\u200d\U0001f4bb\u0301\ufb01 \t\r\n",
    ]
)
MOST_TOKENS = 8 * len(SAMPLE)  # a character has up to four bytes, each a token at most


def read_tokenizer(file: Path) -> "Tokenizer":
    """The tokenizer in a `tokenizer.json`: it neither cuts nor fills a text. `CheckpointError` if it cannot be read."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(read_bytes(file, MOST_TOKENIZER_BYTES))
    except OSError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{file} cannot be read ({error}): download or export it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def transformers_tokenizer(folder: Path, config: Any) -> Any:
    """transformers' own tokenizer of a checkpoint with this config; `CheckpointError` if its files make no sense."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a library makes of a value of another type
        raise CheckpointError(
            f"{folder} has a tokenizer that transformers cannot load ({error}): look at its tokenizer_config.json, or "
            "download it again"
        ) from None


def require_usable(file: Path) -> None:
    """Try the tokenizer in `file` on a text, in a process of its own.

    Raises:
        CheckpointError: its rules fail, take too long or too much memory, or make many tokens of a character.
    """
    try:
        number = _tried(sha256_of(file), str(file))
        if number > MOST_TOKENS:
            raise ValueError(f"it makes {number} tokens of {len(SAMPLE)} characters")
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be used ({error}): download or export it again") from None


@functools.lru_cache
def _tried(_sha256: str, file: str) -> int:
    """What `count_tokens` returns, of a file that has this hash."""
    return int(bounded(__name__, "count_tokens", file, libraries=("tokenizers",)))


def count_tokens(file: str) -> int:
    """How many tokens the tokenizer makes of `SAMPLE`."""
    return len(read_tokenizer(Path(file)).encode(SAMPLE).ids)


def tokens_beyond(checkpoint: Checkpoint) -> list[str]:
    """The tokens, in the order of their ids, that have no row in the embedding.

    Raises:
        CheckpointError: the tokenizer cannot be read.
    """
    vocabulary: dict[str, int] = read_tokenizer(checkpoint.path / TOKENIZER).get_vocab()
    rows = checkpoint.vocabulary_size
    return sorted((token for token, id in vocabulary.items() if id >= rows), key=vocabulary.__getitem__)
