"""What several tests share: checkpoints, servers, scripted backends, attacks."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
