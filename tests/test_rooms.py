"""The walls of the house: no circle of imports in any stage, and each contract of pyproject.toml notices a breach."""

import os
import re
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from support import ROOT

STAGES = {
    "training": "pangu_training",
    "convert": "pangu_convert",
    "server": "pangu_server",
    "bench": "pangu_bench",
}
# contract -> a file, and an import in it that the contract must refuse
BREACHES = {
    "stages": [
        ("training/pangu_training/stage/output.py", "import pangu_convert.artifact"),
        ("convert/pangu_convert/artifact.py", "from pangu_server import engine"),
        ("server/pangu_server/engine.py", "import pangu_bench.rows"),
    ],
    "rooms": [
        ("training/pangu_training/stage/output.py", "from pangu_training.data import ranked"),
        ("training/pangu_training/sandbox/checks.py", "import pangu_training.evaluation.problem"),
        ("training/pangu_training/evaluation/judging.py", "from pangu_training.asking import endpoint"),
        ("training/pangu_training/asking/endpoint.py", "import pangu_training.data.draws"),
        ("training/pangu_training/data/rank.py", "from pangu_training.rrtf import loss"),
        ("training/pangu_training/rrtf/loss.py", "import pangu_training.cli"),
    ],
    "engine": [
        ("server/pangu_server/engine.py", "import fastapi"),
        ("server/pangu_server/completion.py", "from pydantic import BaseModel"),
        ("server/pangu_server/metrics.py", "import starlette.responses"),
        ("server/pangu_server/fim.py", "from pangu_server import app"),
        ("server/pangu_server/timings.py", "from pangu_server.protocol.base import Usage"),
        ("server/pangu_server/backends/seam.py", "from pangu_server.backends.torch import runner"),
        ("server/pangu_server/backends/schedule.py", "import pangu_server.backends.ctranslate2.batches"),
        ("server/pangu_server/backends/sampling.py", "import uvicorn"),
    ],
}


@pytest.mark.parametrize("package", STAGES.values())
def test_no_stage_has_a_circle_of_imports(package: str) -> None:
    graph = grimp.build_graph(package, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 10
    try:
        list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the four stages and their contracts."""
    copy = tmp_path_factory.mktemp("house")
    for stage, package in STAGES.items():
        shutil.copytree(
            ROOT / stage / package, copy / stage / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint_imports(house: Path, contract: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--contract", contract],
        cwd=house,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(house / stage) for stage in STAGES)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("contract", BREACHES)
def test_a_contract_notices_each_breach(house: Path, contract: str) -> None:
    kept = lint_imports(house, contract)
    assert kept.returncode == 0, kept.stdout
    # All at once, as one run takes seconds: each breach must be named.
    originals = {file: (house / file).read_bytes() for file, _ in BREACHES[contract]}
    for file, line in BREACHES[contract]:
        (house / file).write_bytes(originals[file] + f"\n{line}\n".encode())
    broken = lint_imports(house, contract)
    for file, data in originals.items():
        (house / file).write_bytes(data)
    assert broken.returncode == 1
    for file, line in BREACHES[contract]:
        module = file.partition("/")[2].removesuffix(".py").replace("/", ".")
        imported = line.replace("from ", "").replace("import ", "").split()
        found = re.findall(rf"\b{re.escape(module)} -> ([\w.]+)", broken.stdout)
        assert any(".".join(imported).startswith(name) for name in found), f"{module}: {broken.stdout}"
