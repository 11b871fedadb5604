"""From tokens to text that can be sent: whole characters only, and cut exactly at a stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Tokens of the prompt that decide how the first new token reads, e.g. whether it keeps its leading space.
CONTEXT_TOKENS = 6
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Incremental decoding of one completion.

    The pieces of `push` and the rest from `flush` joined are the decoding of all tokens at once, and no
    piece ends inside a character.
    """

    def __init__(
        self, tokenizer: "Tokenizer", prompt_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        context = list(prompt_ids[-CONTEXT_TOKENS:])
        if self._decode(context).endswith(REPLACEMENT):
            context = []  # a prompt cut inside a character: nothing of it may show in the completion
        self._ids = context
        self._context_length = len(self._decode(context))
        self.length = 0  # of the text pushed up to now, in characters
        self._stream = DecodeStream(ids=context, skip_special_tokens=skip_special_tokens)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, empty while a character lacks bytes."""
        self._ids.append(token_id)
        text: str = self._stream.step(self._tokenizer, token_id) or ""
        self.length += len(text)
        return text

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        rest = self._decode(self._ids)[self._context_length + self.length :]
        self.length += len(rest)
        return rest

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip)
        return text


class StopStrings:
    """Holds text back while it may be the start of a stop string, and cuts before the first one found."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be sent now that `text` follows. Empty for ever once a stop is found."""
        if self.found:
            return ""
        self._held += text
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if starts:
            self.found = True
            return self._held[: min(starts)]
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        sent, self._held = self._held[:cut], self._held[cut:]
        return sent

    def flush(self) -> str:
        """The text held back when the completion ends without a stop string."""
        rest, self._held = ("" if self.found else self._held), ""
        return rest


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
