"""The folder of a training run. Standard library only.

    run.json         what it trains, on what, with which options: written first
    metrics.jsonl    a line a step, and one an evaluation
    held-out/        epoch-N.jsonl: the answers to held-out problems after N epochs, and how they came out
    checkpoint-N/    all that resuming needs, marked when it is whole
    tensorboard/     the same for TensorBoard
    final/           the trained weights, or the LoRA adapter: written last

The same command on the same folder goes on from the last whole checkpoint; another command is refused.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pangu_training.stage.checkpoint import TRAINING_FACTS, read_json
from pangu_training.stage.errors import OutputError
from pangu_training.stage.output import write_file, write_json

RUN, METRICS, FINAL, WHOLE = "run.json", "metrics.jsonl", "final", "whole"


class Run:
    """A run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def final(self) -> Path:
        """Where the trained weights come."""
        return self.path / FINAL

    def held_out_answers(self, epoch: int) -> Path:
        """The file of the answers to held-out problems after `epoch` epochs."""
        return self.path / "held-out" / f"epoch-{epoch}.jsonl"

    @property
    def description(self) -> dict[str, Any]:
        """What `run.json` says."""
        return read_json(self.path / RUN)

    @property
    def facts(self) -> dict[str, Any]:
        """What of it is told to others."""
        description = self.description
        return {name: description.get(name) for name in TRAINING_FACTS}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The entries of `metrics.jsonl`, in order; a last line that a kill cut short is left out."""
        file = self.path / METRICS
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def describe(self, identity: Mapping[str, Any], **notes: Any) -> None:
        """Write `run.json`, or check that it has the same identity; `notes` may differ.

        Raises:
            OutputError: the folder holds another run, or something else.
        """
        if (self.path / RUN).is_file():
            old = self.description
            changed = [name for name in identity if old.get(name) != identity[name]]
            if changed:
                raise OutputError(
                    f"{self.path} is a run with another {changed[0]} "
                    f"({old.get(changed[0])}, now {identity[changed[0]]}): choose another --output"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise OutputError(f"{self.path} is not empty and no training run: choose another --output")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / RUN, {**identity, **notes})

    def append_metrics(self, entry: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Forget the metrics of steps after `step`, which will be done again."""
        kept = [entry for entry in self.metrics if entry["step"] <= step]
        write_file(self.path / METRICS, "".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` optimizer steps."""
        return self.path / f"checkpoint-{step}"

    def mark_whole(self, step: int) -> None:
        """Say that the checkpoint of `step` is written."""
        os.sync()  # the libraries that wrote it do not
        write_file(self.checkpoint(step) / WHOLE, b"")

    def last_checkpoint(self) -> Path | None:
        """The latest checkpoint that was written to its end."""
        whole = [file.parent for file in self.path.glob(f"checkpoint-*/{WHOLE}")]
        return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
