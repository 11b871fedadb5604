"""pass@k: the chance that at least one of k samples solves a task, estimated without bias (Chen et al. 2021)."""

from collections.abc import Sequence

import numpy as np

from pangu_training.errors import PanguError


class TooFewSamples(PanguError):
    """pass@k cannot be told from fewer than k samples."""


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for one task, `solved` = c of `samples` = n, as a product that does not overflow.

    Raises:
        TooFewSamples: there are fewer than `k` samples.
    """
    if samples < k:
        raise TooFewSamples(f"pass@{k} needs {k} samples a task, there are {samples}: draw more")
    if samples - solved < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - solved + 1, samples + 1)))


def mean_pass_at_k(tasks: Sequence[tuple[int, int]], k: int) -> float:
    """pass@k of a suite: the mean over its tasks, each given as (samples, solved)."""
    return float(np.mean([pass_at_k(samples, solved, k) for samples, solved in tasks]))


def pass_at_k_interval(
    tasks: Sequence[tuple[int, int]], k: int, *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of `mean_pass_at_k`; whole tasks are drawn, since samples of a task are alike."""
    return bootstrap_interval(
        [pass_at_k(samples, solved, k) for samples, solved in tasks],
        confidence=confidence,
        draws=draws,
        seed=seed,
    )


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, one value a task; the same for the same seed."""
    rates = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # Row by row: 10,000 draws of a large suite at once would take hundreds of MB.
    means = [rates[generator.integers(len(rates), size=len(rates))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
