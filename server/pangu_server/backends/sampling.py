"""Draws the next token from a model's logits: one implementation for all that a backend does not draw itself.

The order is vLLM's: bias, minimum length, penalties, grammar, temperature, top-k, top-p, min-p. A seeded draw takes
one uniform number a token from a counter-based generator, so it does not depend on what else is running.
Nothing depends on the order of equally likely tokens: those tied with the last one that top-k or top-p keeps are
kept, and the number falls on what is kept in the order of ids. So a GPU can do the same without sorting.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from pangu_server.backends.seam import SamplingOptions, TokenLogprobs

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

GROUP = 32  # logits of which only the highest is looked at first
BLOCK = 512  # weights that are summed before they are cumulated


class Sampler:
    """The choice of one completion's tokens. Call it once a token, in order."""

    def __init__(
        self, prompt_ids: Sequence[int], options: SamplingOptions, generated_ids: Sequence[int] = ()
    ) -> None:
        """A completion that has `generated_ids` already goes on from them."""
        self._options = options
        self._uniforms = Uniforms(options.seed)
        self._bias_ids = np.array([token_id for token_id, _ in options.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in options.logit_bias], dtype=np.float32)
        self._end_ids = np.array(options.end_token_ids, dtype=np.int64)
        self._seen = set(prompt_ids) if options.repetition_penalty != 1 else set()
        self._counts: Counter[int] = Counter()
        self._drawn = 0
        self._changes, self._greedy = self._has_changes(options), self.is_greedy(options)
        self.matcher = (
            None if options.constraint is None else options.constraint.matcher(options.end_token_ids)
        )
        self.plain = self.is_argmax(options)
        for token_id in generated_ids:
            self.accept(token_id)

    @staticmethod
    def is_argmax(options: SamplingOptions) -> bool:
        """Whether the choice is always the highest logit as the model gives it."""
        return Sampler.is_greedy(options) and not Sampler.changes_logits(options)

    @staticmethod
    def is_greedy(options: SamplingOptions) -> bool:
        """Whether nothing is drawn: of several best tokens the one of the lowest id is taken."""
        return options.temperature == 0 or options.top_k == 1

    @staticmethod
    def changes_logits(options: SamplingOptions) -> bool:
        """Whether anything but the temperature and a cut-off decides."""
        return options.constraint is not None or Sampler._has_changes(options)

    @staticmethod
    def _has_changes(options: SamplingOptions) -> bool:
        return bool(
            options.logit_bias
            or options.min_tokens
            or options.presence_penalty
            or options.frequency_penalty
            or options.repetition_penalty != 1
        )

    def __call__(self, logits: Logits) -> int:
        """The next token's id. `logits` has shape (vocabulary,) and is left as it is."""
        token_id = self.choose(logits, self._drawn)
        self.accept(token_id)
        return token_id

    def choose(self, logits: Logits, draw: int, assumed: Sequence[int] = ()) -> int:
        """Token number `draw`, from 0 on, if those not accepted yet are `assumed`. Changes nothing.

        Where a grammar allows nothing it is an end token: who follows the grammar too sees that.
        """
        allowed = None
        if self.matcher is not None and (allowed := self.matcher.allowed(assumed)) is None:
            return self._options.end_token_ids[0]
        if self._changes:
            logits = self._changed(logits, draw, assumed)
        if allowed is not None:
            logits = np.where(bits(allowed, logits.size), logits, np.float32(-np.inf))
        if self._greedy:
            return int(logits.argmax())
        options = self._options
        uniform = self._uniforms[draw]
        return pick(logits, options.temperature, options.top_k, options.top_p, options.min_p, uniform)

    def accept(self, token_id: int) -> None:
        """This is the next token."""
        self._drawn += 1
        self._counts[token_id] += 1
        if self._options.repetition_penalty != 1:
            self._seen.add(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)

    def _changed(self, logits: Logits, draw: int, assumed: Sequence[int]) -> Logits:
        options, logits = self._options, logits.copy()
        if self._bias_ids.size:
            logits[self._bias_ids] += self._bias
        if draw < options.min_tokens:
            logits[self._end_ids] = -np.inf
        if options.repetition_penalty != 1:
            seen = _ids(self._seen.union(assumed))
            values = logits[seen]
            penalty = np.float32(options.repetition_penalty)
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if options.presence_penalty or options.frequency_penalty:
            counts = self._counts + Counter(assumed) if assumed else self._counts
            times = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
            logits[_ids(counts)] -= options.presence_penalty + options.frequency_penalty * times
        return logits


def bits(mask: bytes, count: int) -> npt.NDArray[np.bool_]:
    """The first `count` bits of a `Matcher`'s mask; those that it does not have are 0."""
    flags: npt.NDArray[np.bool_] = np.unpackbits(
        np.frombuffer(mask, np.uint8), count=count, bitorder="little"
    ).view(np.bool_)
    return flags


def check_ids(options: SamplingOptions, vocabulary: int) -> None:
    """Refuse options that name a token beyond the logits, which a GPU would follow into foreign memory.

    Raises:
        IndexError: with the token's id.
    """
    ends = options.end_token_ids if options.min_tokens else ()
    for token_id in (*(token_id for token_id, _ in options.logit_bias), *ends):
        if not 0 <= token_id < vocabulary:
            raise IndexError(f"token {token_id} is not one of the model's {vocabulary}")


class Uniforms:
    """The numbers in [0, 1) of one completion: number d is for its d-th token, from 0 on."""

    def __init__(self, seed: int | None) -> None:
        """The same seed gives the same numbers; None: fresh ones."""
        self._random = np.random.Generator(np.random.Philox(seed))
        self._numbers: npt.NDArray[np.float64] = np.empty(0)

    def __getitem__(self, draw: int) -> float:
        if draw >= self._numbers.size:
            missing = draw + 1 - self._numbers.size
            self._numbers = np.append(self._numbers, self._random.random(max(missing, 64)))
        return float(self._numbers[draw])


def pick(logits: Logits, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """The token on which `uniform`, in [0, 1), falls. `logits` (vocabulary,) have all changes behind them."""
    ids = None
    if 0 < top_k < logits.size:
        ids = _top(logits, top_k)
        logits = logits[ids]
    weights = logits - logits.max()
    weights /= np.float32(temperature)
    np.exp(weights, out=weights)  # probabilities times a constant
    if top_p < 1:
        kept = _nucleus(weights, top_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    if min_p:
        weights *= weights >= np.float32(min_p)
    index = _reach(weights, uniform * weights.sum(dtype=np.float64), "right")
    return index if ids is None else int(ids[index])


def _nucleus(weights: Logits, top_p: float) -> Ids:
    """Indices, in order, of the fewest best ones that reach `top_p` of all; of those tied with the last too."""
    total = weights.sum(dtype=np.float64)
    # Those below this have together less than `top_p` leaves out, so the fewest are among the others.
    candidates = np.flatnonzero(weights >= np.float32((1 - top_p) * total / weights.size))
    likely = weights[candidates]
    best_first = np.sort(likely)[::-1]
    kept: Ids = candidates[likely >= best_first[_reach(best_first, top_p * total, "left")]]
    return kept


def _reach(weights: npt.NDArray[np.floating], target: float, side: Literal["left", "right"]) -> int:
    """The index at which the cumulated weights reach `target` (left) or exceed it (right).

    Whatever is rounded, it is one at which they grow.
    """
    if weights.size > BLOCK:  # cumulating 150 000 numbers takes longer than computing them
        sums = np.add.reduceat(weights, np.arange(0, weights.size, BLOCK), dtype=np.float64)
        block = _reach(sums, target, side)
        start = block * BLOCK
        return start + _reach(weights[start : start + BLOCK], target - sums[:block].sum(), side)
    cumulated = weights.astype(np.float64).cumsum()
    target = min(max(target, 0.0), np.nextafter(cumulated[-1], 0.0))
    return int(np.searchsorted(cumulated, target, side))


def _ids(tokens: Collection[int]) -> Ids:
    return np.fromiter(tokens, dtype=np.int64, count=len(tokens))


def token_logprobs(logits: Logits, token_id: int, top: int) -> TokenLogprobs:
    """The log-probability of `token_id`, and of the `top` best tokens. `logits` has shape (vocabulary,)."""
    best = logits.max()
    # The sum alone has to be in double precision for a logarithm that is right to 1e-7.
    total = float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    return TokenLogprobs(
        float(logits[token_id]) - total,
        tuple((int(i), float(logits[i]) - total) for i in highest(logits, top)),
    )


def highest(logits: Logits, count: int) -> Ids:
    """Ids of the `count` highest logits, highest first; of equal ones the lower id comes first."""
    count = min(count, logits.size)
    if not count:
        return np.empty(0, dtype=np.int64)
    ids = _top(logits, count)
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def _top(logits: Logits, count: int) -> Ids:
    """Ids, in order, of the `count` highest logits and of those tied with the last of them."""
    # `count` groups have a best one above the last of their bests, so few others have to be looked at.
    groups = logits[: logits.size // GROUP * GROUP].reshape(GROUP, -1).max(0)
    if count <= groups.size:
        candidates = np.flatnonzero(logits >= np.partition(groups, -count)[-count])
    else:
        candidates = np.arange(logits.size)
    values = logits[candidates]
    best: Ids = candidates[values >= np.partition(values, -count)[-count]]
    return best
