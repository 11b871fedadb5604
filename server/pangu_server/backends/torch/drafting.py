"""Prompt lookup: guess the next tokens from what stands already in the prompt, and verify several in one step.

Code repeats itself, and an edit of a function mostly repeats the function. A guess costs a row of the step; whether it
pays is a matter of the device, so costs are measured (`Costs`) and acceptance is learned for each completion.
"""

import bisect
import heapq
from collections.abc import Sequence

MAX_DRAFT = 8  # tokens
NGRAM = 3  # tokens that must have occurred before
FIRST_GUESS = 0.7  # share of guesses that are right, until the completion has shown its own
MEMORY = 0.9  # weight of what was learned before, a guess


class Lookup:
    """What may follow in one completion. `prediction` is what its client expects the answer to hold."""

    def __init__(self, tokens: Sequence[int], prediction: Sequence[int] = ()) -> None:
        self._history: list[int] = []
        self._following: dict[tuple[int, ...], int] = {}  # where the tokens behind these begin, the last time
        self.rate = FIRST_GUESS
        if prediction:
            self._add(prediction)
            self._start = len(prediction)  # n-grams do not reach across
        else:
            self._start = 0
        self._add(tokens)

    def _add(self, tokens: Sequence[int]) -> None:
        history, first = self._history, len(self._history)
        history.extend(tokens)
        for end in range(max(first, NGRAM), len(history)):
            self._following[tuple(history[end - NGRAM : end])] = end

    def append(self, token: int) -> None:
        """One more token of the answer."""
        self._add((token,))

    def guess(self, count: int) -> list[int]:
        """Up to `count` tokens that may come next: those that came the last time after the same three."""
        history = self._history
        if len(history) - self._start < NGRAM or count <= 0:
            return []
        at = self._following.get(tuple(history[-NGRAM:]))
        return [] if at is None else history[at : at + count]

    def learn(self, guessed: int, right: int) -> None:
        """Of `guessed` tokens the first `right` were what the model chose."""
        for index in range(min(guessed, right + 1)):  # those behind a wrong one tell nothing
            self.rate = MEMORY * self.rate + (1 - MEMORY) * (index < right)


class Costs:
    """Seconds of a step by its number of tokens, as measured; between two sizes in proportion."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._seconds: list[float] = []

    def learn(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` tokens took `seconds`."""
        at = bisect.bisect_left(self._sizes, tokens)
        if at < len(self._sizes) and self._sizes[at] == tokens:
            self._seconds[at] += (seconds - self._seconds[at]) / 8
        else:
            self._sizes.insert(at, tokens)
            self._seconds.insert(at, seconds)

    def step(self, tokens: int) -> float:
        """Seconds that a step of `tokens` tokens is expected to take."""
        sizes, seconds = self._sizes, self._seconds
        if not sizes:
            return float(tokens)  # nothing is known: no guess pays
        at = bisect.bisect_left(sizes, tokens)
        if at < len(sizes) and sizes[at] == tokens:
            return seconds[at]
        if at == 0:
            return seconds[0] * tokens / sizes[0]
        if at == len(sizes):
            return seconds[-1] * tokens / sizes[-1]
        share = (tokens - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
        return seconds[at - 1] + share * (seconds[at] - seconds[at - 1])


def lengths(rates: Sequence[float], costs: Costs) -> list[int]:
    """How many tokens to guess for each completion of a step, so that most tokens a second are expected.

    `rates` are the shares of right guesses. A guess is right only if all before it are.
    """
    chosen = [0] * len(rates)
    tokens, total = len(rates), float(len(rates))
    best, best_pace = list(chosen), total / costs.step(tokens) if rates else 0.0
    gains = [(-rate, row) for row, rate in enumerate(rates) if rate > 0]  # the highest first
    heapq.heapify(gains)
    while gains:
        gain, row = heapq.heappop(gains)
        chosen[row] += 1
        tokens += 1
        total -= gain
        if chosen[row] < MAX_DRAFT:
            heapq.heappush(gains, (gain * rates[row], row))
        pace = total / costs.step(tokens)
        if pace > best_pace:
            best, best_pace = list(chosen), pace
    return best
