"""From text to token ids. Special tokens in a user's code can be kept from becoming control tokens."""

import json
import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.errors import ContextLengthExceeded, RequestError
from pangu_server.pieces import Pieces, written
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


def without_prefix(tokenizer: "Tokenizer") -> "Tokenizer":
    """A copy that puts no blank before a text, as SentencePiece's vocabularies have it."""
    from tokenizers import Tokenizer

    parts = json.loads(tokenizer.to_str())

    def drop(part: Any) -> Any:
        if isinstance(part, list):
            return [drop(one) for one in part if not (isinstance(one, dict) and one.get("type") == "Prepend")]
        if not isinstance(part, dict):
            return part
        never: dict[str, Any] = {"prepend_scheme": "never"} if part.get("type") == "Metaspace" else {}
        never |= {"add_prefix_space": False} if "add_prefix_space" in part else {}
        return {name: drop(value) for name, value in part.items()} | never

    for name in ("normalizer", "pre_tokenizer"):
        [parts[name]] = drop([parts[name]]) or [None]
    return Tokenizer.from_str(json.dumps(parts))


class Encoder:
    """The artifact's tokenizer as requests need it."""

    def __init__(
        self, tokenizer: "Tokenizer", end_token_ids: Sequence[int], *, context_length: int | None = None
    ) -> None:
        """Without `context_length` texts of any length are read."""
        self.tokenizer, self.pieces = tokenizer, Pieces(tokenizer)
        self.context_length = context_length
        self.vocabulary_size: int = 1 + max(tokenizer.get_vocab().values(), default=-1)  # ids may be skipped
        # An empty prompt starts a document: after end-of-text, which checkpoints name last.
        self._document_start = end_token_ids[-1]
        self.start_ids: list[int] = tokenizer.encode("").ids  # what the tokenizer puts before every text
        # Whitespace runs are added tokens in some vocabularies, and control nothing.
        added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.content.strip()]
        self._controls = [token.content for token in added]
        # Added tokens that decoding shows: `<think>` and `<tool_call>` are written by models, and read by programs.
        self.markup = frozenset(token.content for token in added if not token.special)
        begins_with = self.pieces.of(next(iter(self._ids(["."])), -1))
        self._continuing = without_prefix(tokenizer) if begins_with.startswith(b" ") else None
        # Nobody can write it into a request, and a template's `tojson` and `upper` leave it as it is.
        self._mark = f"{secrets.randbelow(10**30):030}"

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name, if the vocabulary has it."""
        token_id: int | None = self.tokenizer.token_to_id(token)
        return token_id

    def prompt(
        self,
        prompt: str | Sequence[int],
        *,
        parse_special: bool = True,
        add_special: bool = True,
        param: str = "prompt",
    ) -> list[int]:
        """The ids of a whole prompt: never empty. `add_special`: what the tokenizer puts before every text.

        Raises:
            RequestError: no valid Unicode, or unknown token ids; names the field `param`.
        """
        if isinstance(prompt, str):
            ids = self.text(prompt, parse_special=parse_special, param=param)
            ids = self.start_ids + ids if add_special else ids
        else:
            ids = list(prompt)
            self.check_ids(ids, param)
        return ids or [self._document_start]

    def text(
        self, text: str, *, parse_special: bool, param: str = "prompt", begins: bool = True
    ) -> list[int]:
        """The ids of a piece of text and nothing else.

        With `parse_special` a special token's name in the text becomes that token; without, it is read as
        the characters it is written with. `begins`: SentencePiece's puts a blank before it.
        """
        self.check_unicode(text, param)
        return self.guarded_text(text if parse_special else self.guard(text), begins=begins, param=param)

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

    def guard(self, text: str, keep: Collection[str] = ()) -> str:
        """`text` with a mark in each name of a special token but those to `keep`: read as plain characters."""
        starts = {start for name in self._controls for start in _found(name, text)}
        starts -= {start for name in keep for start in _found(name, text)}
        cuts = [start + 1 for start in sorted(starts)]
        return self._mark.join(text[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True))

    def guarded_text(self, text: str, *, begins: bool = True, param: str = "messages") -> list[int]:
        """The ids of a text that has guarded parts; `begins`: see `text`.

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
        if self._continuing is None:
            return self._ids(pieces)
        first, *others = pieces
        ids = self._ids([first]) if begins else self._continued(first)
        for piece in others:
            ids += self._continued(piece)
        return ids

    def _ids(self, pieces: list[str]) -> list[int]:
        """Of all pieces. A batch, even of one, leaves the interpreter to others meanwhile."""
        encode = self.tokenizer.encode_batch_fast
        return [id for piece in encode(pieces, add_special_tokens=False) for id in piece.ids]

    def _continued(self, text: str) -> list[int]:
        """The ids of a text that follows another one, up to its first special token without a blank before it."""
        assert self._continuing is not None
        found = [start for name in self._controls if (start := text.find(name)) >= 0]
        end = min(found, default=len(text))
        [head] = self._continuing.encode_batch_fast([text[:end]], add_special_tokens=False)
        return list(head.ids) + self._ids([text[end:]])

    @property
    def most_characters(self) -> int:
        """Of a text that is tokenized: many times what the context can hold of any real one."""
        return max(LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * (self.context_length or 0))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens by name."""
        return self.pieces.join(ids)

    def token_text(self, token_id: int, *, first: bool = False) -> str:
        """One token as OpenAI writes it in `logprobs`; `first`: at the beginning of a text."""
        return written(self.pieces.of(token_id, first=first))


def _found(name: str, text: str) -> Iterator[int]:
    """Where `name` begins in `text`. Searches for one name are short; one for all would keep other threads waiting."""
    start = text.find(name)
    while start >= 0:
        yield start
        start = text.find(name, start + 1)
