"""From text to token ids. Special tokens in a user's code can be kept from becoming control tokens."""

import json
import re
import secrets
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.errors import RequestError
from pangu_server.pieces import Pieces, written
from pangu_training.stage.checkpoint import TOKENIZER
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.vocabulary import read_tokenizer as read_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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

    def __init__(self, tokenizer: "Tokenizer", end_token_ids: Sequence[int]) -> None:
        self.tokenizer, self.pieces = tokenizer, Pieces(tokenizer)
        self.vocabulary_size: int = 1 + max(tokenizer.get_vocab().values(), default=-1)  # ids may be skipped
        # An empty prompt starts a document: after end-of-text, which checkpoints name last.
        self._document_start = end_token_ids[-1]
        self.start_ids: list[int] = tokenizer.encode("").ids  # what the tokenizer puts before every text
        # Whitespace runs are added tokens in some vocabularies, and control nothing.
        added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.content.strip()]
        names = sorted((re.escape(token.content) for token in added), key=len, reverse=True)
        self._control = re.compile(f"(?=({'|'.join(names)}))" if names else "(?!)()")
        # Added tokens that decoding shows: `<think>` and `<tool_call>` are written by models, and read by programs.
        self.markup = frozenset(token.content for token in added if not token.special)
        begins_with = self.pieces.of(next(iter(self._ids(".")), -1))
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
        return self.guarded_text(text if parse_special else self.guard(text), begins=begins)

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
        cuts = [match.start() + 1 for match in self._control.finditer(text) if match[1] not in keep]
        return self._mark.join(text[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True))

    def guarded_text(self, text: str, *, begins: bool = True) -> list[int]:
        """The ids of a text that has guarded parts; `begins`: see `text`."""
        # Cut behind its first character, a name is not a special token's any more, and the text stays the same.
        first, *others = text.split(self._mark)
        ids: list[int] = self._ids(first) if begins else self._continued(first)
        for piece in others:
            ids += self._continued(piece)
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _continued(self, text: str) -> list[int]:
        """The ids of a text that follows another one, up to its first special token without a blank before it."""
        if self._continuing is None:
            return self._ids(text)
        control = self._control.search(text)
        end = control.start() if control else len(text)
        head: list[int] = self._continuing.encode(text[:end], add_special_tokens=False).ids
        return head + self._ids(text[end:])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens by name."""
        return self.pieces.join(ids)

    def token_text(self, token_id: int, *, first: bool = False) -> str:
        """One token as OpenAI writes it in `logprobs`; `first`: at the beginning of a text."""
        return written(self.pieces.of(token_id, first=first))
