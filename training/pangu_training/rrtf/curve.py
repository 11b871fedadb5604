"""`pangu-train curve`: pass@1 over data size and epochs, as in Figure 4 of PanGu-Coder2's paper.

For each size a random part of the ranked pairs, which holds every smaller one, is trained as `pangu-train fit` trains,
with the same options, in a folder of its own. Then pass@1 on the held-out problems is drawn over the epochs:
`curve.md`, `curve.svg` and `curve.json`. `--runs` draws finished runs and trains nothing.

The same command goes on where it was stopped; with more sizes it trains those that are missing.
"""

import gc
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pangu_training.data.ranked import RankedRow, read_ranked
from pangu_training.evaluation.intervals import wilson
from pangu_training.evaluation.pictures import Point, curves, standalone
from pangu_training.rrtf.fit import train
from pangu_training.rrtf.options import TrainingOptions
from pangu_training.rrtf.run import Run
from pangu_training.stage.checkpoint import read_checkpoint, read_json
from pangu_training.stage.errors import PanguError
from pangu_training.stage.options import argument, counted, nested, option
from pangu_training.stage.output import write_file, write_json

TABLE, PICTURE, REPORT = "curve.md", "curve.svg", "curve.json"


class CurveError(PanguError):
    """The curve cannot be trained or drawn as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveOptions:
    """What to train in which sizes, or which runs to draw."""

    data: Path | None = argument("ranked pairs, JSONL", None)
    sizes: tuple[int, ...] | None = counted("how many pairs to train on, in turn", None)
    checkpoint: Path | None = option("the checkpoint folder to start from", None)
    runs: tuple[Path, ...] | None = option("draw these finished runs; train nothing", None, metavar="RUN")
    output: Path = option("the folder of the curve and its runs", writes="results")
    training: TrainingOptions = nested(TrainingOptions)


def curve(options: CurveOptions) -> None:
    """Train what is missing, then draw.

    Raises:
        CurveError: arguments are missing, there are not enough pairs, or the runs cannot be compared.
        PanguError: see `train`.
    """
    output, problems = options.output, options.training.held_out_problems
    needed = (options.data, options.sizes, options.checkpoint, problems)
    if bool(options.runs) == any(needed) or not (options.runs or all(needed)):
        raise CurveError(
            "give the ranked pairs, --sizes, --checkpoint and --held-out-problems, or --runs and none of these"
        )
    sizes = sorted(set(options.sizes or ()))
    runs = [Run(path) for path in options.runs or (output / f"size-{size}" for size in sizes)]
    _refuse_others(output, runs)
    if sizes:
        _train(sizes, runs, options)
    if int(os.environ.get("RANK", 0)) == 0:
        report = report_of(runs)
        output.mkdir(parents=True, exist_ok=True)
        write_file(output / TABLE, table(report).encode())
        write_file(output / PICTURE, picture(report).encode())
        write_json(output / REPORT, report)
        print(f"{table(report)}\n{output / TABLE}, {output / PICTURE} and {output / REPORT} are written")
        print(json.dumps(report))


def parts(rows: Sequence[RankedRow], sizes: Sequence[int], seed: int) -> list[tuple[RankedRow, ...]]:
    """A random part of `rows` of each size; a smaller one is the beginning of a larger one."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    return [tuple(shuffled[:size]) for size in sizes]


def report_of(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs came to.

    Raises:
        CurveError: one is not finished, has no pass@1, or was asked other problems than the first.
    """
    for one in runs:
        if not one.final.is_dir():
            raise CurveError(f"{one.path} is not a finished run: run its pangu-train fit command again")
        if not one.description.get("held_out_problems"):
            raise CurveError(f"{one.path} has no pass@1: train with --held-out-problems")
        if _asked(one) != _asked(runs[0]):
            raise CurveError(f"{one.path} and {runs[0].path} were asked different problems: draw them apart")
    asked = _asked(runs[0])
    return {"held_out_problems": asked, "runs": [_run_report(one, asked["used"]) for one in runs]}


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown: pass@1 by run and epoch, then what belongs to each."""
    asked, runs = report["held_out_problems"], report["runs"]
    epochs = range(max(len(one["epochs"]) for one in runs))
    lines = [
        "# pass@1 over data size and epochs",
        "",
        f"{asked['used']} held-out problems (sha256 {asked['sha256'][:12]}…), one greedy answer of at most "
        f"{asked['max_tokens']} tokens each; intervals are Wilson's, 95 %.",
        "",
        _row("run", "pairs", *(f"epoch {epoch}" for epoch in epochs)),
        _row("---", "---", *("---" for _ in epochs)),
    ]
    for one in runs:
        cells = ["{:.1%} ({:.1%} to {:.1%})".format(at["pass_at_1"], *at["interval"]) for at in one["epochs"]]
        lines.append(_row(one["name"], one["pairs"], *cells, *[""] * (len(epochs) - len(cells))))
    lines += [
        "",
        "A step is one global batch, so that more pairs are more steps an epoch. Rank loss and ranked right are of "
        "the held-out pairs where a run has any, else the mean over the epoch's training pairs.",
        "",
        _row("run", "pairs", "global batch", "epoch", "steps", "solved", "rank loss", "ranked right", "of"),
        _row(*["---"] * 9),
    ]
    for one in runs:
        for at in one["epochs"]:
            ranking = ("", "", "")
            if at["ranking_of"]:
                ranking = (f"{at['rank_loss']:.4g}", f"{at['ranked_right']:.1%}", at["ranking_of"])
            cells = [one["name"], one["pairs"], one["global_batch"], at["epoch"], at["step"], at["solved"]]
            lines.append(_row(*cells, *ranking))
    return "\n".join(lines) + "\n"


def picture(report: Mapping[str, Any]) -> str:
    """pass@1 over the epochs, a line a run: SVG."""
    runs = report["runs"]
    sizes = [f"{one['pairs']} pairs" for one in runs]
    names = sizes if len(set(sizes)) == len(runs) else [one["name"] for one in runs]
    series = [
        [
            Point(series=number, label=name, x=at["epoch"], y=at["pass_at_1"], low=low, high=high)
            for at in one["epochs"]
            for low, high in [at["interval"]]
        ]
        for number, (one, name) in enumerate(zip(runs, names, strict=True))
    ]
    y_label = f"pass@1 of {report['held_out_problems']['used']} held-out problems"
    return standalone(curves(series, x_label="epochs", y_label=y_label), names)


def _refuse_others(output: Path, runs: Sequence[Run]) -> None:
    """`CurveError` when `output` has a curve that the new one would not have all runs of."""
    old = read_json(output / REPORT)["runs"] if (output / REPORT).is_file() else []
    lost = {one["name"] for one in old} - {one.path.name for one in runs}
    if lost:
        raise CurveError(f"{output} is a curve with {min(lost)}: choose another --output, or keep that run")


def _train(sizes: Sequence[int], runs: Sequence[Run], asked: CurveOptions) -> None:
    import torch

    from pangu_training.rrtf.pairs import PairTokenizer

    assert asked.data
    assert asked.checkpoint
    options, data = asked.training.options, read_ranked(asked.data)
    tokenizer = PairTokenizer(read_checkpoint(asked.checkpoint))
    fitting = [row for row in data.rows if tokenizer.pair(row, options.max_length)]
    if len(fitting) < sizes[-1]:
        raise CurveError(
            f"{data.path} has {len(fitting)} pairs that fit --max-length {options.max_length}: "
            f"choose --sizes up to that"
        )
    jobs = zip(runs, parts(fitting, sizes, options.seed), strict=True)
    for one, rows in reversed(list(jobs)):  # what does not work with the largest is said first
        train(replace(data, rows=rows), asked.checkpoint, one.path, asked.training)
        gc.collect()  # the trainer holds itself
        torch.cuda.empty_cache()


def _asked(run: Run) -> dict[str, Any]:
    asked, options = run.description["held_out_problems"], run.description["options"]
    return {
        "sha256": asked["sha256"],
        "used": asked["used"],
        "max_tokens": options["held_out_max_tokens"],
    }


def _run_report(run: Run, problems: int) -> dict[str, Any]:
    description = run.description
    return {
        "name": run.path.name,
        "path": str(run.path),
        "pairs": description["data"]["used"],
        "global_batch": description["options"]["global_batch"],
        "epochs": list(_epochs(run.metrics, problems)),
    }


def _epochs(metrics: Sequence[Mapping[str, Any]], problems: int) -> Iterator[dict[str, Any]]:
    """Every evaluation: the first is before the training, the others after an epoch each."""
    steps: list[Mapping[str, Any]] = []
    epoch = 0
    for entry in metrics:
        if "loss" in entry:
            steps.append(entry)
        elif "held_out_pass_at_1" in entry:
            solved = entry["held_out_outcomes"]["passed"]
            yield {
                "epoch": epoch,
                "step": entry["step"],
                "solved": solved,
                "pass_at_1": entry["held_out_pass_at_1"],
                "interval": wilson(solved, problems),
                "outcomes": entry["held_out_outcomes"],
                **_ranking(entry, steps),
            }
            steps, epoch = [], epoch + 1


def _ranking(entry: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rank loss and ranked right after an epoch, and of which pairs they are, if of any."""
    names = ("rank_loss", "ranked_right")
    if "held_out_rank_loss" in entry:
        return {name: entry[f"held_out_{name}"] for name in names} | {"ranking_of": "held-out pairs"}
    if not steps:
        return dict.fromkeys((*names, "ranking_of"))
    pairs = sum(step["pairs"] for step in steps)
    means = {name: sum(step[name] * step["pairs"] for step in steps) / pairs for name in names}
    return means | {"ranking_of": "training pairs"}


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
