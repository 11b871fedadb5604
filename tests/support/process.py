"""The installed `pangu-serve` as a process, and the `openai` package as its client."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

COMMAND = Path(sys.executable).with_name("pangu-serve")


class Server:
    """A running `pangu-serve`."""

    def __init__(self, artifact: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            # One thread: two that wait for each other crawl when a test machine is busy.
            [COMMAND, artifact, "--port", "0", "--device", "cpu", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.banner = self.process.stdout.readline() + self.process.stdout.readline()
        found = re.search(r"ready on (http://127\.0\.0\.1:\d+)", self.banner)
        assert found, self.banner + (self.process.communicate()[1] or "")
        self.address = found[1]
        self.openai = openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=120)
        self.model = self.openai.models.list().data[0].id

    def metric(self, name: str, **labels: str) -> float:
        text = httpx.get(f"{self.address}/metrics", timeout=60).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def terminate(self, *, expected: str = "(?!)") -> int:
        """SIGTERM; the exit code, see `end`."""
        self.process.send_signal(signal.SIGTERM)
        return self.end(expected=expected)

    def end(self, *, expected: str = "(?!)") -> int:
        """The exit code when it ends. Nothing may be on stderr but lines in which `expected` is found."""
        self.openai.close()
        self.process.wait(60)
        lines = self.process.communicate()[1].splitlines()
        errors = [line for line in lines if not re.search(expected, line)]
        assert not errors, "\n".join(["nothing to complain about, but it did:", *errors])
        return self.process.returncode


def has_ended(process_id: int | str) -> bool:
    """Whether a process, not necessarily a child, is gone or only waits to be reaped."""
    try:
        return not Path(f"/proc/{process_id}/cmdline").read_bytes()
    except OSError:
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
