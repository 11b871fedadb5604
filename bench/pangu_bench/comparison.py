"""`pangu-bench compare`: memory, ms per token and HumanEval of several artifacts, and whether differences are real.

Each artifact is served by a fresh process. A server that runs already (--base-url) comes after them, with what can be
measured from outside: latency and score. Every reading is a row in `--output`, where an interrupted run goes on; then a
Markdown table and a page with pictures are written there, and the figures into each artifact's manifest, which the
server shows. The first is the baseline. What `pangu-bench load` left in the same folder is in the page.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_bench.options import COSTS, AnswerOptions, CostOptions, Running, UsageError, running_server
from pangu_convert.card_scores import FIGURES
from pangu_training.stage.command import ServerOptions
from pangu_training.stage.options import argument, counted, nested, option
from pangu_training.stage.output import write_file

if TYPE_CHECKING:
    from pangu_bench.evaluation import Evaluation
    from pangu_bench.rows import RowFile
    from pangu_convert.artifact import Artifact
    from pangu_training.asking.endpoint import Endpoint

TABLE, PAGE = "compare.md", "compare.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What is compared, and what is measured of it."""

    artifacts: tuple[Path, ...] = argument("the baseline comes first", (), nargs="*", metavar="ARTIFACT")
    base_url: tuple[Running, ...] = option(
        "also a server that runs already, called NAME in the results (default: its model's name); its key is in "
        "$OPENAI_API_KEY; can be given several times",
        (),
        action="append",
        type=running_server,
        metavar="URL[=NAME]",
    )
    output: Path = option("folder for rows and table", metavar="DIR", writes="results")
    costs: CostOptions = nested(CostOptions)
    keystrokes: int = counted(
        "into a file, for the editor's TTFT as `pangu-bench editor` measures it; 0: not measured",
        40,
        least=0,
        group=COSTS,
    )
    answers: AnswerOptions = nested(AnswerOptions)
    server: ServerOptions = nested(ServerOptions)


def compare(options: CompareOptions) -> int:
    """Measure all, compare, report; 1 when a gold solution fails, since then no score can be trusted."""
    from pangu_bench.table import table

    report = compared(options)
    print(table(report))
    print(json.dumps(report))
    return 1 if any(one["score"].get("gold", {}).get("failed") for one in report["artifacts"]) else 0


def compared(options: CompareOptions) -> dict[str, Any]:
    """Measure and compare all; the report, as `compare.json` has it.

    Raises:
        ArtifactError, RowsError, SandboxError, ServedError, SuiteError, UsageError: what is asked cannot be measured.
    """
    from pangu_bench.artifacts import record
    from pangu_bench.costs import in_short
    from pangu_bench.evaluation import evaluation_of
    from pangu_bench.report import page
    from pangu_bench.table import table
    from pangu_convert.artifact import read_artifact
    from pangu_training.asking.endpoint import running

    evaluation = evaluation_of(options.answers)
    artifacts = [read_artifact(path) for path in options.artifacts]
    servers = [(server.name, running(server.url)) for server in options.base_url]
    endpoints = [(name or endpoint.model, endpoint) for name, endpoint in servers]
    names = [artifact.manifest.name for artifact in artifacts] + [name for name, _ in endpoints]
    if not names:
        raise UsageError("give an artifact or --base-url")
    if len(set(names)) < len(names):
        raise UsageError(
            f"two have one name ({', '.join(names)}): convert one with another --name, or give --base-url URL=NAME"
        )
    costs = options.costs
    for artifact in artifacts:
        costs.check(artifact.manifest.name, artifact.manifest.context_length)
    gold = evaluation.gold(options.output)
    measured = [_measure(artifact, evaluation, gold, options) for artifact in artifacts]
    measured += [_measure_running(name, endpoint, evaluation, gold, options) for name, endpoint in endpoints]
    report = {
        "artifacts": measured,
        "pairs": [_pair(measured[0], other) for other in measured[1:]] if evaluation.suite.runnable else [],
        "cost_options": dataclasses.asdict(costs),
    }
    text = table(report)
    write_file(options.output / TABLE, text.encode())
    write_file(options.output / PAGE, page(report, text, _loads(options.output, names)).encode())
    write_file(options.output / FIGURES, json.dumps(report, indent=2).encode())
    for artifact, figures in zip(artifacts, measured[: len(artifacts)], strict=True):
        scores = {"costs": in_short(figures["costs"])}
        if evaluation.options.limit is None and evaluation.suite.runnable:
            scores[evaluation.suite.name] = figures["score"]
        record(artifact.path, scores)
    return report


def _measure(
    artifact: "Artifact",
    evaluation: "Evaluation",
    gold: Mapping[str, Any],
    options: CompareOptions,
) -> dict[str, Any]:
    """The artifact's figures."""
    from pangu_bench.artifacts import description, subject_of
    from pangu_bench.costs import figures, is_complete, measured_server
    from pangu_bench.editor_column import editor_column
    from pangu_bench.latency import tokenizer_of
    from pangu_bench.rows import ServedRow
    from pangu_training.asking.endpoint import file_stem

    folder, name, wanted = options.output, artifact.manifest.name, options.costs
    subject, context = subject_of(artifact, options.server), artifact.manifest.context_length
    with (
        _files(folder, name, subject, evaluation, wanted) as (costs, answers),
        editor_column(folder, name, subject, context, options.keystrokes) as editor,
    ):
        if not (is_complete(costs, wanted) and editor.is_complete and evaluation.is_answered(answers)):
            log = folder / f"{file_stem(name)}.server.log"
            with measured_server(artifact, costs, wanted, options=options.server, log=log) as endpoint:
                editor.measure(endpoint, tokenizer_of(artifact), costs.of(ServedRow)[-1])
                evaluation.answer(answers, endpoint)
        evaluation.judge(answers)
        return {
            "name": name,
            **description(artifact),
            "costs": {**figures(costs, artifact), **editor.figures()},
            "score": evaluation.score(answers, gold),
            "pass_rates": evaluation.pass_rates(answers) if evaluation.suite.runnable else {},
        }


def _measure_running(
    name: str,
    endpoint: "Endpoint",
    evaluation: "Evaluation",
    gold: Mapping[str, Any],
    options: CompareOptions,
) -> dict[str, Any]:
    """The figures of a server that runs already."""
    from pangu_bench.artifacts import running_description
    from pangu_bench.costs import is_timed, measure_running, running_figures
    from pangu_bench.editor_column import editor_column
    from pangu_bench.latency import EndpointTokenizer
    from pangu_training.asking.endpoint import ServedError, identity

    not_timed = None
    folder, wanted, context = options.output, options.costs, endpoint.card.get("max_model_len")
    with (
        _files(folder, name, identity(endpoint), evaluation, wanted) as (costs, answers),
        editor_column(folder, name, identity(endpoint), context, options.keystrokes) as editor,
    ):
        if not is_timed(costs, wanted):
            try:
                asyncio.run(measure_running(costs, endpoint, wanted))
            except ServedError as error:  # its score can still be had
                not_timed = f"latency is not measured: {error}"
        editor.measure(endpoint, EndpointTokenizer(endpoint))
        evaluation.answer(answers, endpoint)
        evaluation.judge(answers)
        return {
            "name": name,
            **running_description(endpoint),
            "costs": {**running_figures(costs, endpoint), "not_timed": not_timed, **editor.figures()},
            "score": evaluation.score(answers, gold),
            "pass_rates": evaluation.pass_rates(answers) if evaluation.suite.runnable else {},
        }


@contextlib.contextmanager
def _files(
    folder: Path, name: str, subject: Mapping[str, Any], evaluation: "Evaluation", options: CostOptions
) -> Iterator[tuple["RowFile", "RowFile"]]:
    """The rows of costs and of answers."""
    from pangu_bench.rows import RowFile
    from pangu_training.asking.endpoint import file_stem

    costs_file = folder / f"{file_stem(name)}.costs.jsonl"
    with (
        RowFile(costs_file, {"subject": subject, **dataclasses.asdict(options)}) as costs,
        RowFile(evaluation.file(folder, name), evaluation.configuration(subject)) as answers,
    ):
        yield costs, answers


def _pair(baseline: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """An artifact compared with the baseline."""
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
    from pangu_training.asking.endpoint import file_stem

    files = [(name, folder / f"{file_stem(name)}.load.jsonl") for name in names]
    return [(name, measured_levels(file)) for name, file in files if file.is_file()]
