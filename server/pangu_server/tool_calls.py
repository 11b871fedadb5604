"""Tool calls in an answer, in the form of Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

import json
from dataclasses import dataclass
from typing import Any

from pangu_server.text import overlap

OPENS, CLOSES = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for. `arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolCallReader:
    """Takes the calls out of one answer, piece by piece. However it is cut, the same calls and content come out.

    Content is everything else, among it calls that are not valid JSON. White space alone, before or behind a call, is
    none. Calls beyond `most_calls` are left out.
    """

    def __init__(self, most_calls: int | None = None) -> None:
        self.calls = 0  # given up to now
        self._most_calls = most_calls
        self._held = ""  # may be part of a call
        self._inside = False  # `_held` begins with `OPENS`
        self._searched = 0  # of `_held`: it has no `CLOSES` that begins before
        self._space = ""  # all there is since the beginning or the last call, if that is white space
        self._said = False  # whether there is more than that

    def push(self, text: str) -> list[str | ToolCall]:
        """The content and calls that are certain now that `text` follows, in their order."""
        found: list[str | ToolCall] = []
        self._held += text
        while self._step(found):
            pass
        return found

    def flush(self) -> list[str | ToolCall]:
        """What is left at the end. A whole call is one even if the tag behind it is missing."""
        found: list[str | ToolCall] = []
        if self._inside:
            self._close(self._held[len(OPENS) :], "", found)
        else:
            self._say(self._held, found)
        if self._space and not self.calls:
            found.append(self._space)
        self._held = self._space = ""
        self._inside = False
        return found

    def _step(self, found: list[str | ToolCall]) -> bool:
        """Take what is certain out of what is held; whether there may be more."""
        if not self._inside:
            start = self._held.find(OPENS)
            cut = start if start >= 0 else len(self._held) - overlap(self._held, OPENS)
            self._say(self._held[:cut], found)
            self._held = self._held[cut:]
            self._inside, self._searched = start >= 0, len(OPENS)
            return self._inside
        end = self._held.find(CLOSES, self._searched)
        if end < 0:
            self._searched = max(len(OPENS), len(self._held) - len(CLOSES) + 1)
            return False
        body, self._held = self._held[len(OPENS) : end], self._held[end + len(CLOSES) :]
        self._inside = False
        self._close(body, CLOSES, found)
        return True

    def _close(self, body: str, tag: str, found: list[str | ToolCall]) -> None:
        """What stands between the tags. One that was begun anew counts from there."""
        call = _call(body if tag else body[: len(body) - overlap(body, CLOSES)])
        again = body.rfind(OPENS)
        if call is None and again >= 0:
            self._say(OPENS + body[:again], found)
            self._close(body[again + len(OPENS) :], tag, found)
        elif call is None:
            self._say(OPENS + body + tag, found)
        else:
            if self._most_calls is None or self.calls < self._most_calls:
                found.append(call)
                self.calls += 1
            self._space, self._said = "", False

    def _say(self, text: str, found: list[str | ToolCall]) -> None:
        if not self._said:
            text = self._space + text
            self._said = bool(text.strip())
            self._space = "" if self._said else text
        if self._said and text:
            found.append(text)


def _call(body: str) -> ToolCall | None:
    try:
        read = json.loads(body, parse_constant=_refuse)
        name, arguments = read["name"], read.get("arguments", {})
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        f"{name}{text}".encode()  # a JSON text may name half of a surrogate pair, an answer cannot hold it
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return ToolCall(name, text) if isinstance(name, str) and name and isinstance(arguments, dict) else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
