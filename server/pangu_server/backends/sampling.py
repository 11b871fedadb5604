"""Draws the next token from a model's logits: one implementation for all that a backend does not draw itself.

The order is vLLM's: bias, minimum length, penalties, temperature, top-k, top-p, min-p. A seeded draw takes
one uniform number a token from a counter-based generator, so it does not depend on what else is running.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pangu_server.backends.seam import SamplingOptions, TokenLogprobs

Logits = npt.NDArray[np.float32]


class Sampler:
    """The choice of one completion's tokens. Call it once a token, in order."""

    def __init__(self, prompt_ids: Sequence[int], options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.Philox(options.seed))
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
        return options.temperature == 0 and not Sampler.changes_logits(options)

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
        token_id = int(logits.argmax()) if options.temperature == 0 else self._draw(logits)
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

    def _draw(self, logits: Logits) -> int:
        options = self._options
        scaled = logits.astype(np.float64) / options.temperature
        weights = np.exp(scaled - scaled.max())  # probabilities times a constant
        if not (0 < options.top_k < logits.size or options.top_p < 1):
            weights[weights < options.min_p] = 0
            return self._pick(weights)
        if options.top_k:
            candidates = highest(logits, options.top_k)
            total = weights[candidates].sum()
        else:
            total, count = weights.sum(), 64
            while True:  # sorting 150 000 tokens to keep a handful would take longer than a step
                candidates = highest(logits, count)
                if count >= logits.size or weights[candidates].sum() >= options.top_p * total:
                    break
                count *= 8
        weights = weights[candidates]
        # The fewest of the best whose probabilities reach top_p.
        keep = int(np.searchsorted(weights.cumsum(), options.top_p * total)) + 1
        weights = weights[:keep]
        weights[weights < options.min_p] = 0
        return int(candidates[self._pick(weights)])

    def _pick(self, weights: npt.NDArray[np.float64]) -> int:
        """An index drawn by weight. Those of weight 0 are never drawn."""
        cumulated = weights.cumsum()
        return int(np.searchsorted(cumulated, self._random.random() * cumulated[-1], side="right"))


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
    threshold = np.partition(logits, -count)[-count]
    candidates = np.flatnonzero(logits >= threshold)
    order = np.argsort(-logits[candidates], kind="stable")
    return candidates[order][:count]
