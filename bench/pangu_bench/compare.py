"""`pangu-bench compare`: memory, ms per token and HumanEval of several artifacts, and whether differences are real.

Each artifact is served by a fresh process. Every reading is a row in `--output`, where an interrupted run goes on;
then a Markdown table and a page with pictures are written there, and the figures into each artifact's manifest, which
the server shows. The first artifact is the baseline. What `pangu-bench load` left in the same folder is in the page.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_bench.options import UsageError, add_answer_arguments, answer_options
from pangu_training.command import add_server_arguments, whole_number
from pangu_training.output import write_file

if TYPE_CHECKING:
    from pangu_bench.costs import CostOptions
    from pangu_bench.evaluation import Evaluation
    from pangu_convert.artifact import Artifact

TABLE, FIGURES, PAGE = "compare.md", "compare.json", "compare.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="the baseline comes first"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for rows and table")
    group = parser.add_argument_group("costs")
    group.add_argument(
        "--prompt-tokens",
        nargs="+",
        type=whole_number(1),
        default=[64, 512],
        metavar="N",
        help="(default: 64 512)",
    )
    group.add_argument("--new-tokens", type=whole_number(2), default=64, help="(default: %(default)s)")
    group.add_argument(
        "--context", type=whole_number(3), default=2048, help="at which memory peaks (default: %(default)s)"
    )
    group.add_argument(
        "--warmup", type=whole_number(0), default=3, help="requests a length (default: %(default)s)"
    )
    group.add_argument(
        "--repeats", type=whole_number(1), default=10, help="requests a length (default: %(default)s)"
    )
    add_answer_arguments(parser)
    add_server_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure all, compare, report; 1 when a gold solution fails, since then no score can be trusted."""
    from pangu_bench.artifacts import record
    from pangu_bench.costs import CostOptions, in_short
    from pangu_bench.evaluation import evaluation_of
    from pangu_bench.report import page
    from pangu_bench.table import table
    from pangu_convert.artifact import read_artifact

    evaluation = evaluation_of(answer_options(arguments))
    artifacts = [read_artifact(path) for path in arguments.artifacts]
    names = [artifact.manifest.name for artifact in artifacts]
    if len(set(names)) < len(names):
        raise UsageError(f"two artifacts have one name ({', '.join(names)}): convert one with another --name")
    options = CostOptions(
        context=arguments.context,
        prompt_tokens=tuple(dict.fromkeys(arguments.prompt_tokens)),
        new_tokens=arguments.new_tokens,
        warmup=arguments.warmup,
        repeats=arguments.repeats,
    )
    for artifact in artifacts:
        options.check(artifact)
    gold = evaluation.gold(arguments.output)
    measured = [_measure(artifact, evaluation, options, gold, arguments) for artifact in artifacts]
    report = {
        "artifacts": measured,
        "pairs": [_pair(measured[0], other) for other in measured[1:]] if evaluation.suite.runnable else [],
        "cost_options": dataclasses.asdict(options),
    }
    text = table(report)
    write_file(arguments.output / TABLE, text.encode())
    write_file(arguments.output / PAGE, page(report, text, _loads(arguments.output, names)).encode())
    write_file(arguments.output / FIGURES, json.dumps(report, indent=2).encode())
    for artifact, figures in zip(artifacts, measured, strict=True):
        scores = {"costs": in_short(figures["costs"])}
        if evaluation.options.limit is None and evaluation.suite.runnable:
            scores[evaluation.suite.name] = figures["score"]
        record(artifact.path, scores)
    print(text)
    print(json.dumps(report))
    return 1 if gold.get("failed") else 0


def _measure(
    artifact: "Artifact",
    evaluation: "Evaluation",
    options: "CostOptions",
    gold: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """The artifact's figures."""
    from pangu_bench.artifacts import description, subject_of
    from pangu_bench.costs import figures, is_complete, measure_requests, measured_start
    from pangu_bench.environment import copy_bytes_per_second
    from pangu_bench.memory import Meters
    from pangu_bench.rows import RowFile
    from pangu_training.endpoint import file_stem
    from pangu_training.served import ServerProcess

    folder, name, threads = arguments.output, artifact.manifest.name, arguments.threads
    subject = subject_of(artifact, arguments.device, threads)
    stem = file_stem(name)
    costs_file = folder / f"{stem}.costs.jsonl"
    with contextlib.ExitStack() as files:
        costs = files.enter_context(RowFile(costs_file, {"subject": subject, **dataclasses.asdict(options)}))
        answers = files.enter_context(
            RowFile(evaluation.file(folder, name), evaluation.configuration(subject))
        )
        if not (is_complete(costs, options) and evaluation.is_answered(answers)):
            meters, copy_speed = Meters(), copy_bytes_per_second(threads)
            log = folder / f"{stem}.server.log"
            with ServerProcess(artifact.path, device=arguments.device, threads=threads, log=log) as server:
                endpoint = measured_start(
                    server, costs, meters=meters, threads=threads, copy_speed=copy_speed
                )
                if not is_complete(costs, options):
                    requests = measure_requests(
                        costs,
                        endpoint,
                        options,
                        artifact=artifact,
                        meters=meters,
                        process_id=server.process_id,
                    )
                    asyncio.run(requests)
                evaluation.answer(answers, endpoint)
        evaluation.judge(answers)
        return {
            "name": name,
            **description(artifact),
            "costs": figures(costs, artifact),
            "score": evaluation.score(answers, gold),
            "pass_rates": evaluation.pass_rates(answers) if evaluation.suite.runnable else {},
        }


def _pair(baseline: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """An artifact beside the baseline."""
    from pangu_bench.significance import compare, verdict

    comparison = compare(baseline["pass_rates"], other["pass_rates"])
    return {
        "baseline": baseline["name"],
        "name": other["name"],
        **dataclasses.asdict(comparison),
        "detectable": comparison.detectable,
        "verdict": verdict(comparison),
    }


def _loads(folder: Path, names: Sequence[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """What `pangu-bench load` has measured of these artifacts in the same folder."""
    from pangu_bench.load import measured_levels
    from pangu_training.endpoint import file_stem

    files = [(name, folder / f"{file_stem(name)}.load.jsonl") for name in names]
    return [(name, measured_levels(file)) for name, file in files if file.is_file()]
