"""A checkpoint's tokenizer, and which of its tokens the model knows nothing of."""

from pathlib import Path
from typing import TYPE_CHECKING

from pangu_training.stage.checkpoint import TOKENIZER, Checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.files import MOST_TOKENIZER_BYTES, read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(file: Path) -> "Tokenizer":
    """The tokenizer in a `tokenizer.json`; `CheckpointError` when it cannot be read."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(read_bytes(file, MOST_TOKENIZER_BYTES))
    except OSError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{file} cannot be read ({error}): download or export it again") from None


def tokens_beyond(checkpoint: Checkpoint) -> list[str]:
    """The tokens, in the order of their ids, that have no row in the embedding.

    Raises:
        CheckpointError: the tokenizer cannot be read.
    """
    vocabulary: dict[str, int] = read_tokenizer(checkpoint.path / TOKENIZER).get_vocab()
    rows = checkpoint.vocabulary_size
    return sorted((token for token, id in vocabulary.items() if id >= rows), key=vocabulary.__getitem__)
