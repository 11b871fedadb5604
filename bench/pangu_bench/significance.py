"""Whether a difference between two artifacts on one suite is real. Paired: the same problems, task by task.

Flips are what decides: 4 problems more can be 4 gained and none lost, or 62 gained and 58 lost. Miller 2024
(arXiv 2411.00640) on paired evaluation; McNemar 1947 for the test, exact (binomial) here because flips are few. Where a
suite has several tasks of one program, programs take the place of tasks: their flips come together.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pangu_training.evaluation.pass_at_k import bootstrap_interval, by_program
from pangu_training.stage.errors import PanguError

ALPHA = 0.05
# With fewer problems changed than this, all in one direction, p is above 0.05: 2 / 2**5 = 0.0625.
FEWEST_FLIPS = 6


class UnpairedError(PanguError):
    """The two results are not of the same problems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An artifact compared with its baseline. Differences are shares (0.01 is one point): the artifact's less the
    baseline's.

    With several samples a task there are no flips and no p: then `interval` decides.
    """

    problems: int
    difference: float
    interval: tuple[float, float]  # bootstrap over programs, 95 %
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    p_value: float | None
    discordance: float  # mean squared difference: when greedy, the share of problems whose result differs
    program_discordance: float  # the same of the sums over each program's problems, a problem

    @property
    def detectable(self) -> float:
        """The smallest difference that this many problems show, when results differ this often."""
        return minimum_detectable_difference(self.problems, self.program_discordance)

    @property
    def is_real(self) -> bool:
        """Whether chance is an unlikely reason (p < 0.05, or an interval without 0)."""
        if self.p_value is not None:
            return self.p_value < ALPHA
        return not self.interval[0] <= 0 <= self.interval[1]


def compare(baseline: Mapping[str, float], candidate: Mapping[str, float], *, seed: int = 0) -> Comparison:
    """Compare pass rates by task id: 0 or 1 when greedy, solved/samples when sampled.

    Raises:
        UnpairedError: the task ids differ, or there are none.
    """
    if baseline.keys() != candidate.keys() or not baseline:
        missing = baseline.keys() ^ candidate.keys()
        raise UnpairedError(f"the two results differ in {len(missing)} problems: run both on the same suite")
    tasks = sorted(baseline)
    differences = {task: candidate[task] - baseline[task] for task in tasks}
    programs = by_program(differences)
    sums = [math.fsum(program) for program in programs]
    gained = tuple(task for task in tasks if candidate[task] == 1 and baseline[task] == 0)
    lost = tuple(task for task in tasks if candidate[task] == 0 and baseline[task] == 1)
    greedy = all(rate in (0, 1) for rates in (baseline, candidate) for rate in rates.values())
    return Comparison(
        problems=len(tasks),
        difference=math.fsum(sums) / len(tasks),
        interval=bootstrap_interval(programs, seed=seed),
        gained=gained if greedy else (),
        lost=lost if greedy else (),
        p_value=sign_flip([round(total) for total in sums]) if greedy else None,
        discordance=math.fsum(difference**2 for difference in differences.values()) / len(tasks),
        program_discordance=math.fsum(total**2 for total in sums) / len(tasks),
    )


def verdict(comparison: Comparison) -> str:
    """What `comparison` says, in a sentence."""
    if comparison.discordance == 0:
        return f"no difference: all {comparison.problems} problems have the same results"
    points = f"{100 * comparison.difference:+.1f} points"
    detectable = f"{100 * comparison.detectable:.1f} points"
    interval = "{:+.1f} to {:+.1f}".format(*(100 * end for end in comparison.interval))
    if comparison.p_value is None:
        evidence = f"95% interval {interval}"
    else:
        flips = len(comparison.gained) + len(comparison.lost)
        evidence = (
            f"{len(comparison.gained)} gained, {len(comparison.lost)} lost, p = {comparison.p_value:.2g}"
        )
        if flips < FEWEST_FLIPS:
            return (
                f"the suite is too small to tell: {points} ({evidence}); only {flips} of {comparison.problems} "
                f"problems changed, and fewer than {FEWEST_FLIPS} could be chance whatever their direction"
            )
    if comparison.is_real:
        return f"real: {points} ({evidence})"
    return (
        f"inside noise: {points} ({evidence}); with results that differ this often, {comparison.problems} problems "
        f"show differences of {detectable} or more"
    )


def verdict_without_flips(problems: int, baseline_solved: int, candidate_solved: int) -> str:
    """What two counts alone say, as in a published table that does not name the problems."""
    points = f"{100 * (candidate_solved - baseline_solved) / problems:+.1f} points"
    low, high = mcnemar_bounds(problems, baseline_solved, candidate_solved)
    bounds = f"p is between {low:.2g} and {high:.2g} whichever problems they are"
    if low >= ALPHA:
        return f"inside noise: {points}; {bounds}"
    if high < ALPHA:
        return f"real: {points}; {bounds}"
    return f"cannot be told from the counts: {points}; {bounds}"


def sign_flip(sums: Sequence[int]) -> float:
    """Exact two-sided p of problems gained less lost, by program: how likely fair signs give a total so far from 0.

    McNemar's test where each program has one problem.
    """
    ways = Counter({0: 1})
    for size in filter(None, map(abs, sums)):
        ways = _shifted(ways, size) + _shifted(ways, -size)
    observed = abs(sum(sums))
    return sum(count for total, count in ways.items() if abs(total) >= observed) / ways.total()


def _shifted(ways: Counter[int], by: int) -> Counter[int]:
    return Counter({total + by: count for total, count in ways.items()})


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: how likely a fair coin splits the flips at least as unevenly."""
    flips = gained + lost
    tail = sum(math.comb(flips, count) for count in range(min(gained, lost) + 1))
    return min(1.0, tail / 2 ** (flips - 1)) if flips else 1.0


def mcnemar_bounds(problems: int, baseline_solved: int, candidate_solved: int) -> tuple[float, float]:
    """Smallest and largest p over every overlap that two counts of solved problems allow."""
    difference = candidate_solved - baseline_solved
    fewest, most = max(difference, 0), min(candidate_solved, problems - baseline_solved)
    p_values = [mcnemar(gained, gained - difference) for gained in range(fewest, most + 1)]
    return min(p_values), max(p_values)


def minimum_detectable_difference(problems: int, discordance: float, power: float = 0.8) -> float:
    """The smallest paired difference that a suite finds with probability `power` at p < 0.05 (normal approximation).

    `discordance` is the share of problems whose result differs, in either direction.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - ALPHA / 2) + normal.inv_cdf(power)) * math.sqrt(discordance / problems)
