"""From text to token ids. Special tokens in a user's code can be kept from becoming control tokens."""

import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.errors import ContextLengthExceeded, RequestError
from pangu_training.stage.checkpoint import TOKENIZER
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.vocabulary import read_tokenizer as read_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# Tokenizing takes some 100 bytes of memory for each character.
LEAST_CHARACTERS, CHARACTERS_PER_TOKEN = 1 << 20, 16
FEW = 64  # token ids, whose text takes microseconds


def read_tokenizer(artifact: Artifact) -> "Tokenizer":
    """The artifact's tokenizer; `ArtifactError` when the file does not hold one."""
    try:
        return read_file(artifact.path / TOKENIZER)
    except CheckpointError as error:
        raise ArtifactError(f"{error}; then convert it again") from None


class Encoder:
    """The artifact's tokenizer as requests need it."""

    def __init__(
        self, tokenizer: "Tokenizer", end_token_ids: Sequence[int], *, context_length: int | None = None
    ) -> None:
        """Without `context_length` texts of any length are read."""
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.vocabulary_size: int = 1 + max(tokenizer.get_vocab().values(), default=-1)  # ids may be skipped
        # An empty prompt starts a document: after end-of-text, which checkpoints name last.
        self._document_start = end_token_ids[-1]
        self.start_ids: list[int] = tokenizer.encode("").ids  # what the tokenizer puts before every text
        # Whitespace runs are added tokens in some vocabularies, and control nothing.
        controls = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._controls = [name for name in controls if name.strip()]
        self._mark = f"\ue000{secrets.token_hex(8)}\ue000"  # nobody can write it into a request

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name, if the vocabulary has it."""
        token_id: int | None = self.tokenizer.token_to_id(token)
        return token_id

    def prompt(
        self, prompt: str | Sequence[int], *, parse_special: bool = True, param: str = "prompt"
    ) -> list[int]:
        """The ids of a whole prompt: never empty.

        Raises:
            RequestError: no valid Unicode, or unknown token ids; names the field `param`.
        """
        if isinstance(prompt, str):
            ids = self.start_ids + self.text(prompt, parse_special=parse_special, param=param)
        else:
            ids = list(prompt)
            self.check_ids(ids, param)
        return ids or [self._document_start]

    def text(self, text: str, *, parse_special: bool, param: str = "prompt") -> list[int]:
        """The ids of a piece of text and nothing else.

        With `parse_special` a special token's name in the text becomes that token; without, it is read as
        the characters it is written with.
        """
        self.check_unicode(text, param)
        return self.guarded_text(text if parse_special else self.guard(text), param=param)

    def check_unicode(self, text: str, param: str) -> None:
        """Raise `RequestError` for half of a surrogate pair, which JSON can hold and no tokenizer takes."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(
                f"{param} holds half of a surrogate pair: send valid Unicode", param=param
            ) from None

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise `RequestError` for an id that the vocabulary does not have."""
        for token_id in ids:
            if not 0 <= token_id < self.vocabulary_size:
                raise RequestError(
                    f"{param} holds token id {token_id}; the vocabulary has 0 to {self.vocabulary_size - 1}",
                    param=param,
                )

    def guard(self, text: str) -> str:
        """`text` with a mark in each name of a special token: it will be read as plain characters."""
        starts = {start for name in self._controls for start in _found(name, text)}
        cuts = [start + 1 for start in sorted(starts)]
        return self._mark.join(text[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True))

    def guarded_text(self, text: str, *, param: str = "messages") -> list[int]:
        """The ids of a text that has guarded parts.

        Raises:
            RequestError: it is so long that it cannot be meant; names the field `param`.
        """
        pieces = text.split(self._mark)
        length = sum(map(len, pieces))
        if self.context_length is not None and length > self.most_characters:
            raise ContextLengthExceeded(
                f"{param} holds a text of {length} characters; this server reads up to {self.most_characters} at "
                f"once for its context of {self.context_length} tokens: shorten it",
                param=param,
            )
        # Cut behind its first character, a name is not a special token's any more, and the text stays the same.
        # A batch, even of one, leaves the interpreter to others meanwhile.
        encode = self.tokenizer.encode_batch_fast
        return [id for piece in encode(pieces, add_special_tokens=False) for id in piece.ids]

    @property
    def most_characters(self) -> int:
        """Of a text that is tokenized: many times what the context can hold of any real one."""
        return max(LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * (self.context_length or 0))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens by name."""
        if len(ids) > FEW:  # a batch leaves the interpreter to others meanwhile
            return str(self.tokenizer.decode_batch([list(ids)], skip_special_tokens=False)[0])
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def token_text(self, token_id: int) -> str:
        """One token as OpenAI writes it in `logprobs`: `bytes:\\xf0\\x9f` where it is not a whole character."""
        text, raw = self.decode([token_id]), self.token_bytes(token_id)
        if "\ufffd" not in text or raw is None:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of one token of a byte-level vocabulary; None in any other."""
        token = self.tokenizer.id_to_token(token_id) or ""
        if not all(character in BYTE_OF for character in token):
            return None
        return bytes(BYTE_OF[character] for character in token)


def _found(name: str, text: str) -> Iterator[int]:
    """Where `name` begins in `text`. Searches for one name are short; one for all would keep other threads waiting."""
    start = text.find(name)
    while start >= 0:
        yield start
        start = text.find(name, start + 1)


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's alphabet, in which byte-level vocabularies are written: printable Latin-1 is itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _bytes_of_characters()
