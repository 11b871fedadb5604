"""A checkpoint's tokenizer against its embedding: which tokens the model knows nothing of."""

from pangu_training.stage.checkpoint import TOKENIZER, Checkpoint
from pangu_training.stage.errors import CheckpointError


def tokens_beyond(checkpoint: Checkpoint) -> list[str]:
    """The tokens, in the order of their ids, that have no row in the embedding.

    Raises:
        CheckpointError: the tokenizer cannot be read.
    """
    from tokenizers import Tokenizer

    file = checkpoint.path / TOKENIZER
    try:
        vocabulary: dict[str, int] = Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{file} cannot be read ({error}): download or export it again") from None
    rows = checkpoint.vocabulary_size
    return sorted((token for token, id in vocabulary.items() if id >= rows), key=vocabulary.__getitem__)
