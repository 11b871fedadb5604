"""How far a quantized model's next-token distributions are from its source's.

KL divergence as in llama.cpp's `perplexity --kl-divergence`: of the source from the quantized model, in nats, a
value a position. Pure functions of log-probabilities; knows no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pangu_training.stage.errors import PanguError

if TYPE_CHECKING:
    import torch


class FidelityError(PanguError):
    """There is nothing to compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """A quantized model compared with its source, over `positions` predicted tokens of one text."""

    positions: int
    kl_mean: float
    kl_p99: float
    same_top1: float  # share of positions where both find the same token likeliest
    perplexity: float
    source_perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """1 is equal; above it the quantized model is more surprised by the text."""
        return self.perplexity / self.source_perplexity


@dataclass(slots=True)
class FidelityMeter:
    """Adds up windows of text into a `Fidelity`."""

    _kl: list[float] = field(default_factory=list)
    _same: int = 0
    _surprise: float = 0.0
    _source_surprise: float = 0.0

    def add(
        self, ids: Sequence[int], source: "torch.Tensor", quantized: "torch.Tensor", *, first: int = 1
    ) -> None:
        """Add a window of T tokens, of which those from index `first` on count: at least 1, less than T.

        `source` and `quantized` are log-probabilities of shape (T, vocabulary): row t is the distribution of
        token t + 1. The last row predicts nothing and is left out. A vocabulary padded by one of the two is cut.

        Raises:
            FidelityError: one of the two puts out NaN.
        """
        import torch

        width = min(source.shape[1], quantized.shape[1])
        source, quantized = source[first - 1 : -1, :width], quantized[first - 1 : -1, :width]
        for name, rows in (("source", source), ("artifact", quantized)):
            if rows.isnan().any():
                raise FidelityError(
                    f"the {name} puts out NaN, so it is broken or overflows its type: convert it again, or to another"
                )
        targets = torch.tensor(ids[first:])[:, None]
        # 0 * (-inf - x) is 0 in the limit, and nan in floating point
        kl = torch.nan_to_num(source.exp() * (source - quantized), nan=0.0).sum(-1, dtype=torch.float64)
        self._kl += kl.clamp(min=0).tolist()
        self._same += int((source.argmax(-1) == quantized.argmax(-1)).sum())
        self._surprise -= float(quantized.gather(1, targets).sum(dtype=torch.float64))
        self._source_surprise -= float(source.gather(1, targets).sum(dtype=torch.float64))

    def result(self) -> Fidelity:
        """The figures over all windows so far; there must be one."""
        positions, ordered = len(self._kl), sorted(self._kl)
        return Fidelity(
            positions=positions,
            kl_mean=math.fsum(ordered) / positions,
            kl_p99=ordered[min(positions - 1, math.ceil(0.99 * positions) - 1)],
            same_top1=self._same / positions,
            perplexity=math.exp(self._surprise / positions),
            source_perplexity=math.exp(self._source_surprise / positions),
        )


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs, None for equal sequences."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))
