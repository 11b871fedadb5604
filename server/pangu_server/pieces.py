"""What each token of a vocabulary writes, in bytes: the one truth behind texts, streams and log-probabilities.

A text is the bytes of its tokens, joined and read as UTF-8. So whatever is cut out of a row of tokens, its parts fit.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEFORE = "a"  # any text: what follows one keeps the blank it begins with


class Pieces:
    """The bytes of a tokenizer's tokens."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        decoder = tokenizer.decoder
        self._name = tokenizer.id_to_token
        self._decode = decoder.decode if decoder is not None else " ".join  # so does tokenizers
        self._byte_level = self._decode(["Ġ"]) == " "
        self._byte_fallback = self._decode(["<0x41>"]) == "A"
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        self._known: dict[tuple[int, bool], bytes] = {}

    def special(self, token_id: int) -> str | None:
        """The name of a token that is special: it controls, and a text leaves it out unless asked."""
        return self._special.get(token_id)

    def shows(self, token_id: int, *, skip_special: bool) -> bool:
        """Whether a text has something of this token."""
        return self._name(token_id) is not None and not (skip_special and token_id in self._special)

    def of(self, token_id: int, *, first: bool = False) -> bytes:
        """What a token writes; `first`: at the beginning of a text, where SentencePiece's writes no blank.

        Nothing for an id that has no token.
        """
        key = token_id, first
        if key not in self._known:
            self._known[key] = self._bytes(self._name(token_id), first)
        return self._known[key]

    def join(self, token_ids: Iterable[int]) -> str:
        """The text of these tokens, special ones by name."""
        found, first = [], True
        for token_id in token_ids:
            found.append(self.of(token_id, first=first))
            first = first and not self.shows(token_id, skip_special=False)
        return b"".join(found).decode(errors="replace")

    def _bytes(self, token: str | None, first: bool) -> bytes:
        if token is None:
            return b""
        if self._byte_level:
            known = all(character in BYTE_OF for character in token)
            return bytes(BYTE_OF[character] for character in token) if known else token.encode()
        if self._byte_fallback and (byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)):
            return bytes.fromhex(byte[1])
        if first:
            return self._decode([token]).encode()
        return self._decode([BEFORE, token])[len(self._decode([BEFORE])) :].encode()


def written(raw: bytes) -> str:
    """A token as OpenAI writes it in `logprobs`: `bytes:\\xf0\\x9f` where it is not whole characters."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def unique_names(tokens: Sequence[tuple[int, str]]) -> list[str]:
    """A name for each (id, text): its text, or where an earlier one has that, vLLM's `token_id:17`."""
    names: dict[str, None] = {}
    for token_id, text in tokens:
        names[f"token_id:{token_id}" if text in names else text] = None
    return list(names)


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's alphabet, in which byte-level vocabularies are written: printable Latin-1 is itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _bytes_of_characters()
