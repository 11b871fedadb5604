"""A tokenizer's tokens as the bytes that they add to a text, for llguidance."""

from typing import TYPE_CHECKING

from pangu_server.pieces import Pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Vocabulary:
    """In the form that `LLTokenizer` takes."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], end_token_id: int) -> None:
        """`special_token_ids` are never text: no grammar allows them."""
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_token_ids, end_token_id

    def __call__(self, text: str | bytes) -> list[int]:
        """The library asks for the tokens of a text that is the only possible one, and our grammars say not to."""
        raise AssertionError("a grammar forces tokens")


def vocabulary_of(tokenizer: "Tokenizer", size: int, end_token_id: int) -> Vocabulary:
    """Of the tokens below `size`. Those that control something, and ids without a token, are special."""
    pieces = Pieces(tokenizer)
    added = {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    tokens, special = [], []
    for token_id in range(size):  # one by one: all at once would hold up other threads
        raw = pieces.of(token_id)
        # Whitespace runs are added tokens in some vocabularies, and control nothing.
        if not raw or added.get(token_id, "").strip():
            special.append(token_id)
        tokens.append(raw)
    return Vocabulary(tokens, special, end_token_id)
