"""What a request asks its answer to be."""

from dataclasses import dataclass
from typing import Any, Literal

# `grammar` is llama.cpp's GBNF or llguidance's Lark: the text tells which.
Kind = Literal["json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A grammar as a client wrote it."""

    kind: Kind
    value: Any  # a JSON schema, or its text; a text; for `choice` a list of texts
    param: str  # the request's field, for errors
    whitespace: str | None = (
        None  # regex of what may stand between the tokens of JSON; None: `JSON_WHITESPACE`
    )
