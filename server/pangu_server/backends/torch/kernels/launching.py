"""How the quantized product is launched: rules that fit most cards, and what a search on this card found."""

from collections.abc import Mapping
from dataclasses import dataclass

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


def default_plan(outputs: int, blocks: int) -> Plan:
    """What is taken before a search."""
    split = 1
    while split < 8 and -(-outputs // 64) * split < PROGRAMS and blocks >= 4 * split:
        split *= 2
    launches = {16: Launch(64, 4, 4), 32: Launch(64, 4, 4), 64: Launch(64, 4, 3)}
    return Plan(split, launches)
