"""Draws the next token from a model's logits: one implementation for all that a backend does not draw itself.

The order is vLLM's: bias, minimum length, penalties, temperature, top-k, top-p, min-p. A seeded draw takes
one uniform number a token from a counter-based generator, so it does not depend on what else is running.
Every rule can be followed without sorting the vocabulary: tokens as likely as the last one that is kept are kept
too, and the number falls on what is kept in the order of token ids. A device that draws a whole batch does the same.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pangu_server.backends.seam import SamplingOptions, TokenLogprobs

Logits = npt.NDArray[np.float32]
Weights = npt.NDArray[np.floating]  # probabilities times a constant

GROUP = 32  # logits of which only the highest is looked at first
BLOCK = 512  # weights that are summed before they are cumulated


class Sampler:
    """The choice of one completion's tokens. Call it once a token, in order."""

    def __init__(self, prompt_ids: Sequence[int], options: SamplingOptions) -> None:
        self._options = options
        self._uniforms = Uniforms(options.seed)
        self._bias_ids = np.array([token_id for token_id, _ in options.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in options.logit_bias], dtype=np.float32)
        self._end_ids = np.array(options.end_token_ids, dtype=np.int64)
        self._seen = set(prompt_ids) if options.repetition_penalty != 1 else set()
        self._counts: Counter[int] = Counter()
        self._drawn = 0
        self._changes = self.changes_logits(options)

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
        return bool(
            options.logit_bias
            or options.min_tokens
            or options.presence_penalty
            or options.frequency_penalty
            or options.repetition_penalty != 1
        )

    def __call__(self, logits: Logits) -> int:
        """The next token's id. `logits` has shape (vocabulary,) and is left as it is."""
        options = self._options
        if self._changes:
            logits = self._changed(logits)
        if self.is_greedy(options):
            token_id = int(logits.argmax())
        else:
            token_id = draw(logits, options, self._uniforms[self._drawn])
        self._drawn += 1
        self._counts[token_id] += 1
        if options.repetition_penalty != 1:
            self._seen.add(token_id)
        return token_id

    def _changed(self, logits: Logits) -> Logits:
        options, logits = self._options, logits.copy()
        if self._bias_ids.size:
            logits[self._bias_ids] += self._bias
        if self._drawn < options.min_tokens:
            logits[self._end_ids] = -np.inf
        if self._seen:
            seen = np.fromiter(self._seen, dtype=np.int64)
            values = logits[seen]
            penalty = np.float32(options.repetition_penalty)
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts and (options.presence_penalty or options.frequency_penalty):
            generated = np.fromiter(self._counts, dtype=np.int64)
            counts = np.fromiter(self._counts.values(), dtype=np.float32)
            logits[generated] -= options.presence_penalty + options.frequency_penalty * counts
        return logits


class Uniforms:
    """The numbers in [0, 1) of one completion: number d is for its d-th token, from 0 on."""

    def __init__(self, seed: int | None) -> None:
        """The same seed gives the same numbers; None: fresh ones."""
        self._random = np.random.Generator(np.random.Philox(seed))
        self._numbers = np.empty(0)

    def __getitem__(self, draw: int) -> float:
        if draw >= self._numbers.size:
            missing = draw + 1 - self._numbers.size
            self._numbers = np.append(self._numbers, self._random.random(max(missing, 64)))
        return float(self._numbers[draw])


def draw(logits: Logits, options: SamplingOptions, uniform: float) -> int:
    """The token on which `uniform`, in [0, 1), falls. `logits` (vocabulary,) are final but for the temperature."""
    weights = logits - logits.max()
    weights /= np.float32(options.temperature)
    np.exp(weights, out=weights)
    return pick(logits, weights, options, uniform)


def pick(logits: Logits, weights: Weights, options: SamplingOptions, uniform: float) -> int:
    """The same with `weights` computed: exp((logits - the best one) / temperature), in single precision."""
    ids = None
    if 0 < options.top_k < logits.size or options.top_p < 1:
        ids = _kept(logits, weights, options)
        weights = _exact(logits[ids], logits.max(), options.temperature)
    if options.min_p:
        weights = np.where(weights < options.min_p, 0, weights)
    index = _fall(weights, uniform)
    return index if ids is None else int(ids[index])


def _kept(logits: Logits, weights: Weights, options: SamplingOptions) -> npt.NDArray[np.int64]:
    """Ids that top-k and then top-p keep, in order; tokens tied with the last one of them are kept."""
    total = None
    if options.top_k:
        ids = _candidates(logits, options.top_k)
    else:
        # All tokens below this have together less than top_p leaves out: what is kept is above.
        total = weights.sum(dtype=np.float64)
        ids = np.flatnonzero(weights >= (1 - options.top_p) * total / logits.size)
    best_first = -np.sort(-logits[ids])
    if 0 < options.top_k < best_first.size:
        best_first = best_first[best_first >= best_first[options.top_k - 1]]
    mass = _exact(best_first, best_first[0], options.temperature).cumsum()
    enough = np.searchsorted(mass, options.top_p * (mass[-1] if total is None else total))
    return ids[logits[ids] >= best_first[min(enough, mass.size - 1)]]


def _exact(logits: Logits, best: np.float32, temperature: float) -> npt.NDArray[np.float64]:
    """Weights in double precision."""
    return np.exp((logits.astype(np.float64) - best) / temperature)


def _fall(weights: Weights, uniform: float) -> int:
    """The index at which the cumulated weights exceed `uniform` of their sum. Never one of weight 0."""
    start = 0
    if weights.size > 2 * BLOCK:  # cumulating 150 000 numbers would take longer than all the rest
        sums = np.add.reduceat(weights, np.arange(0, weights.size, BLOCK), dtype=np.float64)
        cumulated = sums.cumsum()
        block = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
        before = cumulated[block] - sums[block]
        uniform = min(max(0.0, (uniform * cumulated[-1] - before) / sums[block]), 1 - 2**-53)
        start = block * BLOCK
        weights = weights[start : start + BLOCK]
    cumulated = weights.cumsum(dtype=np.float64)
    return start + int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))


def token_logprobs(logits: Logits, token_id: int, top: int) -> TokenLogprobs:
    """The log-probability of `token_id`, and of the `top` best tokens. `logits` has shape (vocabulary,)."""
    shifted = logits.astype(np.float64) - logits.max()
    logs = shifted - np.log(np.exp(shifted).sum())
    best = highest(logits, top)
    return TokenLogprobs(float(logs[token_id]), tuple((int(i), float(logs[i])) for i in best))


def highest(logits: Logits, count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` highest logits, highest first; of equal ones the lower id comes first."""
    count = min(count, logits.size)
    if not count:
        return np.empty(0, dtype=np.int64)
    candidates = _candidates(logits, count)
    order = np.argsort(-logits[candidates], kind="stable")
    return candidates[order][:count]


def _candidates(logits: Logits, count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` highest logits, of those tied with them, and maybe of a few more; in order."""
    if count >= logits.size:
        return np.arange(logits.size)
    # The best of groups are fewer to look through, and `count` of them are `count` logits.
    groups = logits[: logits.size // GROUP * GROUP].reshape(GROUP, -1).max(0)
    if count > groups.size:
        groups = logits
    return np.flatnonzero(logits >= np.partition(groups, -count)[-count])
