"""A verb that is killed at any moment leaves nothing that passes for a whole folder, and the same command then gives
what it would have given undisturbed. (With `step=1` every change on the disk is tried, which takes minutes.)"""

from pathlib import Path

import pytest
from support.adapters import save_adapter
from support.commands import pangu_convert
from support.hub import hub_environment, serve_hub
from support.killing import killed
from support.models import save_model
from support.packers import AWQ, save_packed


def assert_unharmed(lines: list[str]) -> None:
    *wrong, last = lines
    assert not wrong
    assert int(last.split()[0]) > 10, "it was killed"


VERBS = {"import": (), "transformers": (), "ctranslate2": ("--no-smooth",)}


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_conversion(verb: str, tmp_path: Path, tiny_bytes: Path) -> None:
    assert_unharmed(killed(verb, tiny_bytes, *VERBS[verb], output=tmp_path / "in" / "out", step=3))


def test_a_killed_replacement(tmp_path: Path, tiny_bytes: Path) -> None:
    """There is always the old artifact or the new one, or the next run brings it back."""
    output = tmp_path / "in" / "out"
    pangu_convert("ctranslate2", tiny_bytes, "--output", output)
    assert_unharmed(killed("transformers", tiny_bytes, "--force", output=output, step=3))


def test_a_killed_merge(tmp_path: Path, tiny_bytes: Path) -> None:
    adapter = save_adapter(tiny_bytes, tmp_path / "adapter", target_modules=["c_attn"])
    assert_unharmed(killed("import", adapter, output=tmp_path / "in" / "out", step=9))


def test_a_killed_import_from_the_hub(tmp_path: Path, tiny_bytes: Path) -> None:
    with serve_hub(tiny_bytes) as address:
        environment = hub_environment(address, tmp_path / "cache")
        assert_unharmed(
            killed("import", "owner/repo", output=tmp_path / "in" / "out", environment=environment, step=9)
        )


def test_a_killed_adoption(tmp_path: Path) -> None:
    folder = save_packed(save_model(tmp_path / "checkpoint", "llama"), tmp_path / "packed", AWQ)
    assert_unharmed(killed("adopt", folder, output=tmp_path / "in" / "out", step=9))
