"""`pangu-bench overlap`: which problems several models solve, and which only one of them (the paper's Figure 5).

Reads what `humaneval` and `compare` have written, one file a model, all of the same problems. A problem is solved when
one of its samples passes; greedy, there is one.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pangu_bench.options import UsageError
from pangu_training.stage.options import argument, counted, option
from pangu_training.stage.output import write_file

TABLE, FIGURES, PAGE = "overlap.md", "overlap.json", "overlap.html"
FEW_MODELS = 3  # up to this many, each set is shown, also an empty one


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a result file comes to."""

    path: Path
    model: str
    style: str
    suite: str
    suite_sha256: str
    samples: int  # a problem
    problems: frozenset[str]
    solved: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapOptions:
    """Which results are laid over each other."""

    rows: tuple[Path, ...] = argument("MODEL.SUITE.STYLE.jsonl, two or more", metavar="ROWS")
    output: Path = option("folder for table and picture", metavar="DIR", writes="results")
    samples: int | None = counted("the first N samples of each problem (default: all that are there)", None)


def draw_overlap(options: OverlapOptions) -> None:
    """Read, intersect, report."""
    from pangu_bench.report import document, figure, html
    from pangu_training.evaluation.pictures import overlaps

    results = [read_result(path, options.samples) for path in options.rows]
    report = overlap(results)
    text = table(report)
    names = [model["name"] for model in report["models"]]
    bars = [
        (one["label"], [names.index(name) for name in one["models"]], one["count"]) for one in report["sets"]
    ]
    picture = figure("Solved by", overlaps(names, bars))
    head, _, rest = text.partition("\n\n")
    options.output.mkdir(parents=True, exist_ok=True)
    write_file(options.output / TABLE, text.encode())
    write_file(options.output / PAGE, document(names, html(head) + picture + html(rest)).encode())
    write_file(options.output / FIGURES, json.dumps(report, indent=2).encode())
    print(text)
    print(json.dumps(report))


def read_result(path: Path, samples: int | None) -> Result:
    """What the file at `path` says of the first `samples` samples, or of all.

    Raises:
        RowsError: it is not a result file.
        UsageError: it has no verdicts, or not on each of its samples.
    """
    from pangu_bench.rows import GenerationRow, VerdictRow, read_rows

    configuration, rows = read_rows(path)
    verdicts = [row for row in rows if isinstance(row, VerdictRow)]
    if "subject" not in configuration or not verdicts:
        raise UsageError(f"{path} has no verdicts on a model's answers: give a file MODEL.SUITE.STYLE.jsonl")
    counted = samples or max(row.sample for row in verdicts) + 1
    verdicts = [row for row in verdicts if row.sample < counted]
    problems = {row.task_id for row in rows if isinstance(row, GenerationRow)}
    judged = Counter(row.task_id for row in verdicts)
    lacking = sum(judged[task_id] < counted for task_id in problems)
    if lacking:
        raise UsageError(
            f"{path} lacks verdicts on {counted} sample(s) of {lacking} problems: run what wrote it again, or give "
            "another --samples"
        )
    return Result(
        path=path,
        model=configuration["subject"]["model"],
        style=configuration["style"],
        suite=configuration["suite"],
        suite_sha256=configuration["suite_sha256"],
        samples=counted,
        problems=frozenset(problems),
        solved=frozenset(row.task_id for row in verdicts if row.passed),
    )


def overlap(results: Sequence[Result]) -> dict[str, Any]:
    """Who solves what, as the JSON output has it: each problem in the one set of exactly those models that solve it.

    Raises:
        UsageError: fewer than two results, or not of the same problems and as many samples.
    """
    first = results[0]
    if len(results) < 2:
        raise UsageError("give the results of two models or more")
    for other in results[1:]:
        if (other.suite, other.suite_sha256) != (first.suite, first.suite_sha256):
            raise UsageError(f"{other.path} is of another suite than {first.path}: measure both with one")
        if other.problems != first.problems:
            raise UsageError(
                f"{other.path} and {first.path} differ in {len(other.problems ^ first.problems)} problems: "
                "let both runs finish, without --limit"
            )
        if other.samples != first.samples:
            least = min(other.samples, first.samples)
            raise UsageError(
                f"{other.path} has {other.samples} samples of a problem, {first.path} {first.samples}: "
                f"give --samples {least}"
            )
    solved = {name: result.solved for name, result in zip(names_of(results), results, strict=True)}
    names = list(solved)
    sets: dict[tuple[str, ...], list[str]] = {(): []}
    if len(names) <= FEW_MODELS:
        sets = {models: [] for size in range(len(names) + 1) for models in combinations(names, size)}
    for task_id in sorted(first.problems, key=by_number):
        sets.setdefault(tuple(name for name in names if task_id in solved[name]), []).append(task_id)
    order = sorted(sets, key=lambda models: (-len(models), [names.index(name) for name in models]))
    return {
        "suite": first.suite,
        "suite_sha256": first.suite_sha256,
        "samples": first.samples,
        "problems": len(first.problems),
        "models": [{"name": name, "solved": len(tasks)} for name, tasks in solved.items()],
        "sets": [
            {
                "label": label(models, len(names)),
                "models": list(models),
                "count": len(sets[models]),
                "problems": sets[models],
            }
            for models in order
        ],
    }


def by_number(task_id: str) -> list[Any]:
    """A sorting key: HumanEval/9 comes before HumanEval/10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", task_id)]


def label(models: Sequence[str], of: int) -> str:
    """What a set is called."""
    if len(models) in (0, of):
        return "all" if models else "none"
    return f"only {models[0]}" if len(models) == 1 else " + ".join(models)


def names_of(results: Sequence[Result]) -> list[str]:
    """The models', with the prompt style where one model comes twice.

    Raises:
        UsageError: two files are of one model in one style.
    """
    names = [result.model for result in results]
    if len(set(names)) < len(names):
        names = [f"{result.model}, {result.style}" for result in results]
    if len(set(names)) < len(names):
        raise UsageError(f"two files are of one model in one style ({', '.join(names)}): give one of them")
    return names


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    from pangu_bench.cost_tables import rows

    problems, samples = report["problems"], report["samples"]
    models = rows(
        ("model", f"solved of {problems}"),
        ((one["name"], f"{one['solved']} ({one['solved'] / problems:.2%})") for one in report["models"]),
    )
    sets = rows(("solved by", "problems"), ((one["label"], str(one["count"])) for one in report["sets"]))
    which = "\n".join(
        f"- **{one['label']}**: {', '.join(one['problems'])}" for one in report["sets"] if one["problems"]
    )
    means = "its one answer passes" if samples == 1 else f"one of its first {samples} samples passes"
    rule = f"{report['suite']}, sha256 {report['suite_sha256'][:12]}…; a problem is solved when {means}."
    return f"# Who solves what\n\n{models}\n\n{sets}\n\n{which}\n\n{rule} Each stands once, with all who solve it.\n"
