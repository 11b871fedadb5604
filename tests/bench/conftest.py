"""What the tests of the benchmark share."""

import pytest

from pangu_bench import environment


@pytest.fixture(autouse=True)
def short_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test looks at the memory's speed; measuring it takes two seconds of a CPU before each start of a server."""
    monkeypatch.setattr(environment, "COPY_BYTES", 1 << 20)
