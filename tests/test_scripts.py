"""The scripts of the documentation still fit the code: each one starts, and none is run."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

SCRIPTS = ROOT / "docs" / "scripts"
NOT_A_PROGRAM = {
    "clients.py",
    "peers_install.py",
    "peers_systems.py",
    "peers_workloads.py",
}  # others import them
PROGRAMS = sorted(path.name for path in SCRIPTS.glob("*.py") if path.name not in NOT_A_PROGRAM)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_has_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}")


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_a_shell_script_is_well_formed(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
