"""Grammars for tests: over a vocabulary that is written down, or as a request asks for them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLTokenizer, regex_to_lark
from tokenizers import Tokenizer

from pangu_server.backends.seam import Constraint
from pangu_server.grammar.child import UNFORCED
from pangu_server.grammar.compiling import Grammars
from pangu_server.grammar.matching import Grammar
from pangu_server.grammar.vocabulary import Vocabulary
from pangu_server.grammar.wanted import Wanted


def grammar(tokens: Sequence[bytes], end: int, regex: str) -> Constraint:
    """Texts of `tokens` that match `regex`; token number `end` ends them."""
    vocabulary = Vocabulary(list(tokens), [end], end)
    tokenizer = LLTokenizer(vocabulary, eos_token=[end])  # type: ignore[arg-type]
    matcher = LLMatcher(tokenizer, f"start: /{regex_to_lark(regex, '')}/\n{UNFORCED}\n", log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return Grammar(matcher)


class Compiler:
    """The server's own way from what is wanted to a grammar."""

    def __init__(self, tokenizer: Tokenizer, ends: Sequence[int], size: int) -> None:
        self.grammars = Grammars(tokenizer, ends, lambda: size)
        self.close = self.grammars.close

    def __call__(self, kind: Any, value: Any, whitespace: str | None = None) -> Constraint:
        wanted = Wanted(kind=kind, value=value, param="p", whitespace=whitespace)
        return asyncio.run(self.grammars.compile(wanted))
