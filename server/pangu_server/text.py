"""From tokens to text that can be sent: whole characters only, and cut exactly at a stop string."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pangu_server.pieces import Pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """What of a completion's tokens becomes its text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False  # the text ends with what stopped it, not before
    skip_special: bool = True  # special tokens are left out


class Detokenizer:
    """Incremental decoding of one completion.

    The pieces of `push` and the rest from `flush` joined are the decoding of all tokens at once, and no
    piece ends inside a character.
    """

    def __init__(self, pieces: Pieces, prompt_ids: Sequence[int], *, skip_special: bool = True) -> None:
        self._pieces, self._skip = pieces, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # Whether the next token begins the text: it does not behind a prompt that shows anything.
        self.first = not any(pieces.shows(token_id, skip_special=skip_special) for token_id in prompt_ids)
        self.length = 0  # of the text pushed up to now, in characters

    def left_out(self, token_id: int) -> str:
        """The name of a special token that the text leaves out; empty for any other."""
        return (self._pieces.special(token_id) or "") if self._skip else ""

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, empty while a character lacks bytes."""
        if not self._pieces.shows(token_id, skip_special=self._skip):
            return ""
        text = self._utf8.decode(self._pieces.of(token_id, first=self.first))
        self.first = False
        self.length += len(text)
        return text

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        rest = self._utf8.decode(b"", final=True)
        self.length += len(rest)
        return rest


class StopStrings:
    """Holds text back while it may be the start of a stop string, and cuts before (or behind) the first one found.

    A stop string is looked for in the text as it is sent. One that holds the name of a special token is also looked for
    in the text with such names in it.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops, self._include = tuple(stops), include
        self._held = ""
        self._sent: list[bool] = []  # of each held character, whether it is to be sent
        self._naming: set[str] = set()  # stop strings that hold a name that came
        self.found = False
        self.word = ""  # the one that was found

    def push(self, text: str, *, hidden: bool = False) -> str:
        """The text that can be sent now that `text` follows. Empty for ever once a stop is found.

        `hidden`: it is the name of a special token, which counts and is never sent.
        """
        if self.found or not self._stops:
            return "" if self.found or hidden else text
        if hidden:
            naming = [stop for stop in self._stops if text in stop]
            if not naming:  # nobody sees a part of a name
                return ""
            self._naming.update(naming)
        self._held += text
        self._sent += [not hidden] * len(text)
        sent = [place for place, sent in enumerate(self._sent) if sent]
        views: list[tuple[Sequence[int], Iterable[str]]] = [
            (sent, self._stops)
        ]  # places of characters, what for
        if len(sent) < len(self._held):
            views.append((range(len(self._held)), self._naming))
        found: list[tuple[int, int, str]] = []
        cut = len(self._held)
        for places, stops in views:
            view = "".join(self._held[place] for place in places)
            for stop in stops:
                if (start := view.find(stop)) >= 0:
                    found.append((places[start], len(stop), stop))
                elif kept := overlap(view, stop):
                    cut = min(cut, places[len(view) - kept])
        if found:
            self.found = True
            start, _, self.word = min(found)
            return self._take(start) + (self.word if self._include else "")
        return self._take(cut)

    def flush(self) -> str:
        """The text held back when the completion ends without a stop string."""
        return "" if self.found else self._take(len(self._held))

    def _take(self, count: int) -> str:
        """The first `count` held characters, as they are sent."""
        taken = "".join(c for c, sent in zip(self._held[:count], self._sent, strict=False) if sent)
        self._held, self._sent = self._held[count:], self._sent[count:]
        return taken


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
