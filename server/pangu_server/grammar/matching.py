"""What the seam calls `Constraint` and `Matcher`, by llguidance."""

import time
from collections.abc import Sequence

from llguidance import LLMatcher

MASK_SECONDS = 5.0  # of computing, for all tokens of a completion: a step takes some 20 microseconds


class GrammarMatcher:
    """See `Matcher`: follows one completion."""

    def __init__(self, matcher: LLMatcher, end_token_ids: Sequence[int]) -> None:
        self._matcher, self._ends = matcher, frozenset(end_token_ids)
        self._spent = 0.0
        self._ended = False  # by an end token

    @property
    def over(self) -> bool:
        """See `Matcher`."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def accept(self, token_id: int) -> bool:
        """See `Matcher`."""
        if token_id in self._ends:
            self._ended = True
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.consume_token(token_id))

    def allowed(self, assumed: Sequence[int] = ()) -> bytes | None:
        """See `Matcher`."""
        if self._ended or self._spent > MASK_SECONDS or not self._ends.isdisjoint(assumed):
            return None
        started = time.thread_time()
        matcher = self._matcher
        if assumed:  # on a copy: an error is for ever
            matcher = matcher.deep_copy()
            if matcher.is_error() or not matcher.consume_tokens(list(assumed)):
                return None
        try:
            mask = bytearray(matcher.compute_bitmask())
        except ValueError:
            return None
        self._spent += time.thread_time() - started
        if matcher.is_error():
            return None
        accepting = matcher.is_accepting()
        for token_id in self._ends:
            byte, bit = divmod(token_id, 8)
            if byte < len(mask):
                mask[byte] = mask[byte] | 1 << bit if accepting else mask[byte] & ~(1 << bit)
        return bytes(mask) if any(mask) else None


class Grammar:
    """See `Constraint`: a grammar that was read, with a model's tokens."""

    def __init__(self, matcher: LLMatcher) -> None:
        """`matcher` is at the beginning, and stays there."""
        self._matcher = matcher

    def matcher(self, end_token_ids: Sequence[int]) -> GrammarMatcher:
        """See `Constraint`."""
        return GrammarMatcher(self._matcher.deep_copy(), end_token_ids)
