"""A tokenizer's tokens as the bytes that they add to a text, for llguidance."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from pangu_server.encoding import BYTE_OF

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
    """Of the tokens below `size`. Those that control something, and ids without a token, are special.

    Raises:
        ValueError: the tokenizer writes its tokens in a way that we do not know.
    """
    bytes_of = _reader(tokenizer)
    added = {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    tokens, special = [], []
    for token_id in range(size):  # one by one: all at once would hold up other threads
        text = added.get(token_id)
        raw = bytes_of(tokenizer.id_to_token(token_id) or "") if text is None else text.encode()
        # Whitespace runs are added tokens in some vocabularies, and control nothing.
        if not raw or (text is not None and text.strip()):
            special.append(token_id)
        tokens.append(raw)
    return Vocabulary(tokens, special, end_token_id)


def _reader(tokenizer: "Tokenizer") -> Callable[[str], bytes]:
    """The function from a token's name to its bytes, by the tokenizer's decoder."""
    decoder = tokenizer.decoder
    state = {} if decoder is None else json.loads(decoder.__getstate__())
    steps = state["decoders"] if state.get("type") == "Sequence" else [state]
    kinds = {step.get("type"): step for step in steps}
    if "ByteLevel" in kinds:
        table = str.maketrans({character: chr(byte) for character, byte in BYTE_OF.items()})

        def mapped(token: str) -> bytes:
            try:
                return token.translate(table).encode("latin-1")
            except UnicodeEncodeError:  # of no alphabet that we know: never text
                return b""

        return mapped
    space = kinds.get("Metaspace", {}).get("replacement") or ("▁" if "Replace" in kinds else None)
    if space is None:
        raise ValueError(
            "the model's tokenizer has another form than those that structured output can be made with"
        )

    def spelled(token: str) -> bytes:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):  # SentencePiece's bytes
            return bytes.fromhex(token[3:5])
        return token.replace(space, " ").encode()

    return spelled
