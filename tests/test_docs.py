"""The commands of the documentation are run as they stand, against a real model."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT


def free_port() -> int:
    """Not one of those that the kernel gives to whoever asks for any, until the script comes to it."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.mark.real_model
@pytest.mark.usefixtures("smollm2")  # what the script downloads is there: two processes cannot fetch one file
def test_the_commands_of_usage_work_in_order(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    script = "set -eu -o pipefail\n" + "".join(blocks).replace("8123", str(free_port()))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # To files, and in a group of its own: a server that a failed script leaves behind must hold nothing up.
    with (tmp_path / "stdout").open("w+") as stdout, (tmp_path / "stderr").open("w+") as stderr:
        script_process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = script_process.wait(500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(script_process.pid, signal.SIGKILL)
            script_process.wait()
    shown, errors = ((tmp_path / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    assert code == 0, errors
    for expected in (
        '"schema_version": 1',
        "files match",
        '"finish_reason":"',
        "data: [DONE]",
        "pangu_model_info",
    ):
        assert expected in shown
    completion = shown.rsplit("process_resident_memory_bytes", 1)[1].split("\n", 1)[1]
    assert completion.startswith("\n    "), "an indented function body"


def test_every_file_named_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## Where things are")[1].split("```")[1]
    folder = ""
    for line in tree.splitlines():
        if line and not line.startswith(" "):
            folder = line.split()[0]
        for name in re.findall(r"\b\w+\.py\b", line):
            assert (ROOT / folder / name).is_file(), f"{folder}{name}"


def test_architecture_has_a_sentence_for_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for stage in ("training", "convert", "server", "bench"):
        for module in (file for suffix in ("py", "js") for file in (ROOT / stage).rglob(f"*.{suffix}")):
            name = str(module.relative_to(ROOT / stage)).removesuffix("/__init__.py")
            assert f"`{name}`" in text, f"{name} is not described"
