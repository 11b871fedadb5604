"""`pangu-bench shape`: memory and ms/token of a model of StarCoder-15B's exact shape, next to the paper's Table 4.

Shape only: the weights are random. Memory, time and disk are the real model's, the text is nonsense, and there is no
score. Each format is made, served by a fresh process, measured as `compare` does it, and deleted. What does not fit
the memory is left out, and said so. The same command goes on where it was stopped.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_bench.options import CostOptions, UsageError
from pangu_bench.shapes import FORMATS, SHAPES, Sizes
from pangu_server.backends.seam import Device
from pangu_training.stage.command import ServerOptions
from pangu_training.stage.errors import MissingExtra
from pangu_training.stage.options import argument, counted, nested, option
from pangu_training.stage.output import write_file

if TYPE_CHECKING:
    from pangu_training.stage.line_file import Journal

CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions:
    """Whose shape, in which formats, and what is measured."""

    shape: str = argument("whose shape", choices=SHAPES)
    output: Path = option("folder for results, and for weights meanwhile", metavar="DIR", writes="results")
    formats: tuple[str, ...] = option(
        f"of {', '.join(FORMATS)}",
        ("bfloat16", "int8", "gptq-8", "gptq-4"),
        choices=FORMATS,
        metavar="FORMAT",
    )
    layers: int | None = counted("fewer layers: a small trial", None)
    keep: bool = option("do not delete checkpoint and artifacts", False)
    costs: CostOptions = nested(
        CostOptions, prompt_tokens=(64,), new_tokens=16, context=512, warmup=1, repeats=3
    )
    server: ServerOptions = nested(ServerOptions)


def measure_shape(options: ShapeOptions) -> None:
    """Make, measure and delete one format after the other; report."""
    try:
        from pangu_bench.random_model import parameter_shapes
    except ModuleNotFoundError as error:
        raise MissingExtra(error, "bench,convert,gptq") from None
    from pangu_bench.shape_table import table
    from pangu_training.stage.line_file import Journal

    config = dict(SHAPES[options.shape])
    layers_of = config["n_layer"]
    config["n_layer"] = layers = options.layers or layers_of
    stem = options.shape if layers == layers_of else f"{options.shape}-{layers}-layers"
    options.costs.check(stem, config["n_positions"])
    trial = Trial(
        folder=options.output,
        stem=stem,
        config=config,
        options=options.costs,
        server=replace(options.server, device=device_of(options.server.device)),
        keep=options.keep,
    )
    sizes = Sizes.of(parameter_shapes(config))
    wanted = [name for name in FORMATS if name in options.formats]
    with Journal(trial.folder / f"{stem}.steps.jsonl") as journal:
        left_out = trial.measure_all(wanted, sizes, journal)
        report = {
            "shape": options.shape,
            "shape_only": "random weights",
            "layers": layers,
            "layers_of": layers_of,
            "parameters": sizes.blocks + sizes.rest,
            "artifacts": [
                {
                    **journal.rows[trial.key(name)]["figures"],
                    "conversion": journal.rows.get(trial.key(name, "conversion"), {}).get("figures"),
                    "paper": FORMATS[name].paper if layers == layers_of else None,
                }
                for name in wanted
                if name not in left_out
            ],
            "left_out": left_out,
            "cost_options": asdict(options.costs),
        }
    text = table(report)
    write_file(trial.folder / f"{stem}.md", text.encode())
    write_file(trial.folder / f"{stem}.json", json.dumps(report, indent=2).encode())
    if not trial.keep:
        shutil.rmtree(trial.work, ignore_errors=True)
    print(text)
    print(json.dumps(report))


def device_of(choice: Device) -> Device:
    """Where `auto` runs: told before, since it decides what fits."""
    import torch

    if choice != "auto":
        return choice
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is measured, and where its files are."""

    folder: Path
    stem: str
    config: Mapping[str, Any]
    options: CostOptions
    server: ServerOptions
    keep: bool

    @property
    def work(self) -> Path:
        """Checkpoint and artifacts: large."""
        return self.folder / self.stem

    def key(self, name: str, step: str = "costs") -> str:
        """Of a finished step in the journal."""
        from pangu_training.stage.line_file import key_of

        served = (asdict(self.options), asdict(self.server)) if step == "costs" else ()
        return key_of(self.config, name, step, served)

    def measure_all(self, wanted: Sequence[str], sizes: Sizes, journal: "Journal") -> dict[str, str]:
        """Measure what is missing; returns why formats are left out.

        Raises:
            UsageError: none of `wanted` fits the memory.
        """
        from pangu_bench.memory import free_bytes

        device = self.server.device
        missing = [name for name in wanted if self.key(name) not in journal.rows]
        left_out: dict[str, str] = {}
        for name in missing:
            needed, free = sizes.needed_bytes(FORMATS[name]), free_bytes(device)
            if needed > free:
                memory = "GPU memory" if device == "cuda" else "memory"
                takes, is_free = f"{needed / 1e9:.1f} GB of {memory}", f"{free / 1e9:.1f} GB are free"
                left_out[name] = f"{name} needs about {takes} to load, and {is_free}"
        if len(left_out) == len(wanted):
            raise UsageError(f"{'. '.join(left_out.values())}: try fewer --layers or other --formats")
        for reason in left_out.values():
            print(f"left out: {reason}", file=sys.stderr)
        missing = [name for name in missing if name not in left_out]
        beside_bytes = max((self._disk_bytes(name, sizes) for name in missing), default=0)
        for name in missing:
            self._make(name, beside_bytes, journal)
            journal.append(self.key(name), {"figures": self._measured(name)})
            if not self.keep:
                shutil.rmtree(self.work / name)
                if not any(FORMATS[later].verb for later in missing[missing.index(name) + 1 :]):
                    shutil.rmtree(self.work / CHECKPOINT, ignore_errors=True)
        return left_out

    def _disk_bytes(self, name: str, sizes: Sizes) -> int:
        if name == "bfloat16":  # the checkpoint's files, linked
            return 0
        return sizes.weight_bytes(FORMATS[name].bits)

    def _make(self, name: str, beside_bytes: int, journal: "Journal") -> None:
        """The artifact, unless it is there."""
        from pangu_bench.random_model import write_checkpoint, write_gptq

        output, format = self.work / name, FORMATS[name]
        if output.exists():
            return
        model = f"{self.stem}-random"
        if format.gptq_bits:
            write_gptq(output, self.config, model, format.gptq_bits)
            return
        checkpoint = self.work / CHECKPOINT
        write_checkpoint(checkpoint, self.config, model, beside_bytes=beside_bytes)
        figures = converted(*format.verb, checkpoint, "--output", output)
        if self.key(name, "conversion") not in journal.rows:
            journal.append(self.key(name, "conversion"), {"figures": figures})

    def _measured(self, name: str) -> dict[str, Any]:
        """The figures of a format's artifact, as `compare` has them."""
        from pangu_bench.artifacts import description, subject_of
        from pangu_bench.costs import figures, is_complete, measured_server
        from pangu_bench.rows import RowFile
        from pangu_convert.artifact import read_artifact

        artifact = read_artifact(self.work / name)
        subject = subject_of(artifact, self.server)
        file = self.folder / f"{self.stem}.{name}.costs.jsonl"
        with RowFile(file, {"subject": subject, **asdict(self.options)}) as rows:
            if not is_complete(rows, self.options):
                log = self.folder / f"{self.stem}.{name}.server.log"
                with measured_server(artifact, rows, self.options, options=self.server, log=log):
                    pass
            costs = figures(rows, artifact)
        facts = {key: value for key, value in description(artifact).items() if not key.startswith("fidelity")}
        return {**facts, "name": artifact.manifest.name, "format": name, "costs": costs}


def converted(*words: object) -> dict[str, Any]:
    """`pangu-convert` with these words in a process of its own: its seconds, hashing included, and its peak memory.

    Raises:
        UsageError: it failed; it has said why.
    """
    from pangu_bench.memory import Meters, Peak

    started = time.perf_counter()
    command = [sys.executable, "-P", "-m", "pangu_convert.cli", *map(str, words)]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process,
        Peak(Meters(), process.pid) as peak,
    ):
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C reaches only this process: the converter is in a session of its own
            process.terminate()
            raise
    if code:
        raise UsageError(f"pangu-convert ended with {code}: mend what it says and run the same command again")
    return {"seconds": time.perf_counter() - started, "meter": "pss", "peak_bytes": peak.sizes.get("pss")}
