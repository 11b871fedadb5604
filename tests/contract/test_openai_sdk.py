"""The `openai` package's own tests of completions, from its sdist, against a real server."""

import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from support import ROOT
from support.commands import Artifacts
from support.process import Server

from pangu_convert.download import cache_folder

CONSTRAINTS = ROOT / "constraints.txt"
MODEL = "gpt-3.5-turbo-instruct"  # the name in their tests
# Input for a mock server, which is refused with a 400: stream_options without a stream.
REFUSED = "test_method_create_with_all_params_overload_1"


@pytest.fixture(scope="module")
def server(artifacts: Artifacts) -> Iterator[Server]:
    artifact = artifacts("tiny_starcoder", "ctranslate2", "--quantization", "float32")
    server = Server(artifact, "--served-model-name", MODEL)
    yield server
    assert server.terminate() == 0


@pytest.fixture(scope="module")
def sdk_tests() -> Path:
    """The sdist's folder with its tests, their settings and their pytest plugin, in the cache folder."""
    name = f"openai-{version('openai')}"
    folder = cache_folder() / "sdist" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        requirement = f"openai=={version('openai')}"
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        # pip builds the metadata of what it downloads, which takes half a minute.
        pip("download", "--no-binary", ":all:", "--dest", folder.parent, requirement)
        # Next to the sdist: in our own environment the plugin would have its say in all of our tests.
        pip("install", "--constraint", CONSTRAINTS, "--target", partial / name / "plugin", "pytest-asyncio")
        with tarfile.open(folder.parent / f"{name}.tar.gz") as archive:
            wanted = (f"{name}/tests/", f"{name}/pyproject.toml")
            members = [member for member in archive if member.name.startswith(wanted)]
            archive.extractall(partial, members, filter="data")
        (partial / name).rename(folder)
        shutil.rmtree(partial)
    return folder


def pip(verb: str, *arguments: object) -> None:
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def test_the_sdk_takes_our_answers(server: Server, sdk_tests: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "tests/api_resources/test_completions.py", "-k", "not aiohttp"]
    # Their own settings but the parallel run; their warnings are theirs.
    settings = ["-o", "addopts=", "-W", "default", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    environment = {
        **os.environ,
        "TEST_API_BASE_URL": f"{server.address}/v1",
        "PYTHONPATH": str(sdk_tests / "plugin"),
    }
    ran = subprocess.run(
        [*command, *settings], cwd=sdk_tests, env=environment, capture_output=True, text=True, check=False
    )
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = {
        case.attrib["name"]: case for case in cases if len(case.findall("failure") + case.findall("error"))
    }
    assert len(cases) == 32, ran.stdout
    assert all(name.startswith(REFUSED) for name in bad), ran.stdout
    for case in bad.values():
        [failure] = case
        assert "BadRequestError" in failure.attrib["message"], ran.stdout
