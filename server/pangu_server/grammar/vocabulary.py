"""A tokenizer's tokens as the bytes that they add to a text, for llguidance."""

import json
from typing import TYPE_CHECKING, Any

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
    tokens, special = [b""] * size, set(range(size))
    added = {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id >= size:
            continue
        text = added.get(token_id)
        if text is not None and text.strip():
            tokens[token_id] = text.encode()
            continue
        # Whitespace runs are added tokens in some vocabularies, and control nothing.
        tokens[token_id] = bytes_of(token) if text is None else text.encode()
        if tokens[token_id]:
            special.discard(token_id)
    return Vocabulary(tokens, sorted(special), end_token_id)


def _reader(tokenizer: "Tokenizer") -> Any:
    """The function from a token's name to its bytes, by the tokenizer's decoder."""
    decoder = tokenizer.decoder
    state = {} if decoder is None else json.loads(decoder.__getstate__())
    steps = state["decoders"] if state.get("type") == "Sequence" else [state]
    kinds = {step.get("type"): step for step in steps}
    if "ByteLevel" in kinds:
        return lambda token: bytes(BYTE_OF[c] for c in token) if all(c in BYTE_OF for c in token) else b""
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
