"""Starts `gptq_worker`, shows how far it is, and says in one line what went wrong there."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from pangu_convert.gptq_worker import Job
from pangu_training.stage.errors import MissingExtra, PanguError


class QuantizationError(PanguError):
    """gptqmodel is missing, failed, or was killed."""


def run_worker(job: Job, work: Path, num_layers: int) -> Mapping[str, Any]:
    """Run `gptq_worker` with `work` as its current folder; returns what it says of the quantization.

    Raises:
        QuantizationError: in one line what went wrong there.
    """
    environment = {
        # tokenicer, below gptqmodel, makes one in /tmp otherwise
        "HF_HOME": str((work / "huggingface").resolve()),
        **os.environ,
        "GPTQMODEL_CPU_WORKERS": str(min(max(2, os.cpu_count() or 2), 12)),  # 1, its own choice, crashes it
    }
    with (
        tempfile.TemporaryFile("w+", errors="replace") as noise,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "pangu_convert.gptq_worker"],
            cwd=work,  # it leaves logs there
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("PANGU_DEBUG") else noise,
            text=True,
        ) as worker,
    ):
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), worker.stdin:  # it died; what it said comes below
                worker.stdin.write(job.to_json())
            done, error = _follow(worker.stdout, num_layers)
        except BaseException:  # Ctrl-C: the worker leaves that to us
            worker.kill()
            raise
        if done is not None:
            worker.kill()  # all is written; its threads take seconds to end
            return done
        code = worker.wait()
        noise.seek(0)
        last_line = next((line.strip() for line in reversed(noise.readlines()) if line.strip()), "no output")
    if "No module named 'gptqmodel" in error:
        raise MissingExtra("gptqmodel is not installed", "gptq")
    if code == -signal.SIGKILL:
        error = "its process was killed; when memory ran out, use a larger machine or a smaller model"
    raise QuantizationError(
        f"gptqmodel could not quantize the checkpoint: {error or f'{last_line} (exit code {code})'}"
    )


def _follow(events: IO[str], num_layers: int) -> tuple[Mapping[str, Any] | None, str]:
    """Show a bar, or a line a layer where stderr is not a terminal, until the worker ends."""
    interactive, started = sys.stderr.isatty(), time.perf_counter()
    done: Mapping[str, Any] | None = None
    error, num_done = "", 0
    bar: tqdm[Any]
    with tqdm(total=num_layers, desc="quantizing", unit="layer", disable=not interactive) as bar:
        for line in events:
            event = json.loads(line)
            if "layer" in event:
                num_done += 1
                bar.update()
                if not interactive:
                    seconds = time.perf_counter() - started
                    print(f"quantized layer {num_done} of {num_layers}, {seconds:.0f} s", file=sys.stderr)
            done, error = event.get("done", done), event.get("error", error)
            if done is not None:
                break
    return done, error
