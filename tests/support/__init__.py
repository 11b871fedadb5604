"""What several tests share: checkpoints, servers, scripted backends, attacks."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
EXAMPLES = int(os.environ.get("PANGU_TEST_EXAMPLES", "40"))  # of a fuzz test: some 5,000 take a few minutes
