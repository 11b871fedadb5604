"""From what a request asks for to a `Constraint`, off the event loop."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pangu_server.errors import Overloaded, RequestError
from pangu_server.grammar.checking import Checker, line_of, refusal
from pangu_server.grammar.wanted import Wanted

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from tokenizers import Tokenizer

    from pangu_server.backends.seam import Constraint

MAX_WAITING = 32  # grammars; each takes a second at most, and most a millisecond
REMEMBERED = 64  # grammars that were found good, as text


class Grammars:
    """Makes grammars ready for one model.

    The vocabulary takes a second or two and 90 MB for 150,000 tokens. For half of the time all other threads are held
    up, while the library builds a tree of the tokens: `prepare` does it before anybody waits.
    """

    def __init__(
        self, tokenizer: "Tokenizer", end_token_ids: Sequence[int], vocabulary_size: Callable[[], int]
    ) -> None:
        """`vocabulary_size` tells the width of the model's logits, once it is loaded."""
        self._tokenizer, self._ends, self._size = tokenizer, tuple(end_token_ids), vocabulary_size
        self._ready: LLTokenizer | None = None
        self._good: OrderedDict[str, str] = OrderedDict()
        self._waiting = 0
        self._checker = Checker()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def prepare(self, vocabulary_size: int) -> None:
        """Read the vocabulary now, for logits of this width; else the first grammar does."""
        with contextlib.suppress(RequestError):  # then each request with a grammar is told
            self._ready = self._read_vocabulary(vocabulary_size)

    async def compile(self, wanted: Wanted) -> "Constraint":
        """The grammar, ready to be followed.

        Raises:
            RequestError: it is not one, nothing matches it, or it takes too much to read.
            Overloaded: too many grammars wait to be read.
        """
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{self._waiting} grammars are waiting to be read: try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, wanted)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process that reads grammars."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._checker.close()

    def _compile(self, wanted: Wanted) -> "Constraint":
        """On the thread."""
        from llguidance import LLMatcher, LLParserLimits

        from pangu_server.grammar.child import LIMITS, reason
        from pangu_server.grammar.matching import Grammar

        tokenizer = self._ready = self._ready or self._read_vocabulary(self._size())
        line = line_of(wanted)
        text = self._good.pop(line, None) or self._checker.check(line, wanted)
        self._good[line] = text
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(**LIMITS))
        # The first step is the longest. With all tokens it can be too much where with bytes it is not.
        first = matcher.deep_copy()
        if not first.is_error():
            first.compute_bitmask()
        if first.is_error():
            raise refusal(wanted, reason(first))
        return Grammar(matcher)

    def _read_vocabulary(self, size: int) -> "LLTokenizer":
        from llguidance import LLTokenizer

        from pangu_server.grammar.vocabulary import vocabulary_of

        ends = [token_id for token_id in self._ends if token_id < size]
        if not ends:
            raise RequestError("an answer of a given form needs an end token, and the model has none")
        vocabulary = vocabulary_of(self._tokenizer, size, ends[-1])
        return LLTokenizer(vocabulary, n_vocab=size, eos_token=ends)  # type: ignore[arg-type]
