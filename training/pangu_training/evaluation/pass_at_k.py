"""pass@k: the chance that at least one of k samples solves a task, estimated without bias (Chen et al. 2021)."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pangu_training.stage.errors import PanguError

HOLE = re.compile(r"/L\d+$")


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


def by_program(values: Mapping[str, float]) -> list[list[float]]:
    """`values` by task id, those of one program together: the holes of infilling's `…/HumanEval/81/L5` are alike."""
    programs: dict[str, list[float]] = defaultdict(list)
    for task_id in sorted(values):
        programs[HOLE.sub("", task_id)].append(values[task_id])
    return list(programs.values())


def bootstrap_interval(
    groups: Sequence[Sequence[float]], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over all tasks; the same for the same seed.

    Whole groups are drawn: the values of a group's tasks depend on each other (Miller 2024, section 2.2).
    """
    sums = np.asarray([math.fsum(group) for group in groups])
    sizes = np.asarray([len(group) for group in groups])
    generator = np.random.default_rng(seed)
    # Row by row: 10,000 draws of a large suite at once would take hundreds of MB.
    drawn = (generator.integers(len(groups), size=len(groups)) for _ in range(draws))
    means = [sums[indices].sum() / sizes[indices].sum() for indices in drawn]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
