"""The evaluation code in the forms in which a model is asked, with where its answer begins.

Plain code does not show what is lost there (docs/results/quantization.md): control tokens are unlike all others inside
the model.
"""

import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pangu_convert.code_text import evaluation_pieces
from pangu_convert.conversation import NoChatTemplate, as_chats, chat_format
from pangu_convert.infilling import fim_tokens, with_hole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HOLES, CHATS = "holes", "chats"
HOLES_A_WINDOW = 4  # a hole is short, so there are more of them in shorter code
LEAST_TOKENS = 32  # of code with a hole


class Asked(NamedTuple):
    """Token ids of a prompt and its answer, which begins at index `first`."""

    ids: tuple[int, ...]
    first: int


def asked(
    folder: Path, tokenizer: "Tokenizer", *, num_windows: int, window_tokens: int
) -> Mapping[str, tuple[Asked, ...]]:
    """The evaluation code as prompts for holes and as conversations, where the model of `folder` knows these forms.

    The same ones every time. As many tokens of a form as `num_windows` windows of code have.

    Raises:
        CheckpointError: its chat template is at fault.
        NoLibrarySource: see `evaluation_pieces`.
    """
    choice = random.Random(0)
    forms: dict[str, list[Asked]] = {}
    tokens = fim_tokens(tokenizer)
    if tokens is not None:
        prefix: list[int] = tokenizer.encode("").ids
        shorter = max(LEAST_TOKENS, window_tokens // HOLES_A_WINDOW)
        pieces = evaluation_pieces(tokenizer, num_pieces=HOLES_A_WINDOW * num_windows, piece_tokens=shorter)
        found = [with_hole(piece, tokens, choice) for piece in pieces]
        forms[HOLES] = [Asked((*prefix, *ids), len(prefix) + first) for ids, first in found]
    with suppress(NoChatTemplate):
        pieces = evaluation_pieces(tokenizer, num_pieces=num_windows, piece_tokens=window_tokens)
        found = as_chats(pieces, tokenizer, chat_format(folder), choice)
        forms[CHATS] = [Asked(ids, max(first, 1)) for ids, first in found if first < len(ids)]
    return {form: tuple(texts) for form, texts in forms.items() if texts}
