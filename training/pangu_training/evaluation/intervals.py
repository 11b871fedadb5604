"""How far a measured share can be from the true one."""

import math
from statistics import NormalDist


def wilson(solved: int, problems: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of one share, `solved` of `problems`."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = solved / problems, z * z / problems
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / problems + spread / (4 * problems)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
