"""How the quantized product is launched.

Rules, not a search: on an H200 shapes that were the fastest one by one made the forty layers of StarCoder-15B slower in
a CUDA graph (8 bits a row 5.4 instead of 4.8 ms, 4 bits 4.3 instead of 4.0), where each kernel begins in the end of
another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

PADDED_ROWS = (16, 32, 64)
PROGRAMS = 384  # enough to keep a large card busy


@dataclass(frozen=True, slots=True)
class Launch:
    """The shape of a program."""

    tile: int  # outputs
    warps: int
    stages: int  # blocks on their way from memory

    def options(self) -> dict[str, int]:
        """As a kernel's keyword arguments."""
        return {"TILE": self.tile, "num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True, slots=True)
class Plan:
    """How one matrix is multiplied. The split is the same for all rows, as it decides the order of the sums."""

    split: int  # programs that share an output's inputs
    launches: Mapping[int, Launch]  # by the padded number of rows

    def smaller(self, rows: int) -> "Plan | None":
        """This plan with a stage less for `rows`, which takes less memory; None where it has but one."""
        launch = self.launches[rows]
        if launch.stages == 1:
            return None
        return Plan(self.split, {**self.launches, rows: replace(launch, stages=launch.stages - 1)})


def default_plan(outputs: int, blocks: int) -> Plan:
    """For a matrix of this size."""
    split = 1
    while split < 8 and -(-outputs // 64) * split < PROGRAMS and blocks >= 4 * split:
        split *= 2
    launches = {16: Launch(64, 4, 4), 32: Launch(64, 4, 4), 64: Launch(64, 4, 3)}
    return Plan(split, launches)
