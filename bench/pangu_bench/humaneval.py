"""`pangu-bench humaneval`: how many problems of a suite a model solves, and how sure that number is.

Answers and verdicts are rows in `--output`; a run that was interrupted goes on there. The score goes into the
artifact's manifest, which the server shows, unless --limit left problems out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_bench.options import AnswerOptions, Running, UsageError, running_server
from pangu_training.stage.command import ServerOptions
from pangu_training.stage.options import argument, nested, option

if TYPE_CHECKING:
    from pangu_bench.evaluation import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """Which model is asked, what, and how."""

    artifact: Path | None = argument("folder that pangu-convert wrote", None)
    base_url: Running | None = option(
        "ask a server that runs already, called NAME in the results; its key is in $OPENAI_API_KEY",
        None,
        type=running_server,
        metavar="URL[=NAME]",
    )
    gold: bool = option("score the suite's own solutions alone", False)
    output: Path = option("folder for the rows", metavar="DIR", writes="results")
    answers: AnswerOptions = nested(AnswerOptions)
    server: ServerOptions = nested(ServerOptions)


def score(options: ScoreOptions) -> int:
    """Ask, judge, report; 1 when a gold solution fails, since then no score of this run can be trusted."""
    from pangu_bench.evaluation import evaluation_of, in_words

    if (options.artifact is not None) + (options.base_url is not None) + options.gold != 1:
        raise UsageError("give one of an artifact, --base-url and --gold")
    evaluation = evaluation_of(options.answers)
    gold = evaluation.gold(options.output)
    if options.gold:
        if not gold:
            raise UsageError(f"{evaluation.suite.name} has no gold solutions: {evaluation.suite.no_score}")
        result = {"suite": evaluation.suite.name, **gold}
        print(f"{evaluation.suite.name}: gold solutions pass {gold['passed']} of {gold['problems']}")
        for task_id in gold["failed"]:
            print(f"  {task_id} fails")
    else:
        name, scored = _measure(options, evaluation, gold)
        result = {"model": name, **scored}
        print(f"{name}: {in_words(scored)}")
    print(json.dumps(result))
    return 1 if gold.get("failed") else 0


def _measure(
    options: ScoreOptions, evaluation: "Evaluation", gold: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The model's name and its score."""
    from pangu_bench.artifacts import record, subject_of
    from pangu_bench.rows import RowFile
    from pangu_convert.artifact import read_artifact
    from pangu_training.asking.endpoint import file_stem, identity, running
    from pangu_training.asking.server_process import ServerProcess

    folder = options.output
    if options.base_url is not None:
        endpoint = running(options.base_url.url)
        name = options.base_url.name or endpoint.model
        configuration = evaluation.configuration(identity(endpoint))
        with RowFile(evaluation.file(folder, name), configuration) as rows:
            evaluation.answer(rows, endpoint)
            evaluation.judge(rows)
            return name, evaluation.score(rows, gold)
    assert options.artifact is not None
    artifact = read_artifact(options.artifact)
    name = artifact.manifest.name
    subject = subject_of(artifact, options.server)
    with RowFile(evaluation.file(folder, name), evaluation.configuration(subject)) as rows:
        if not evaluation.is_answered(rows):
            log = folder / f"{file_stem(name)}.server.log"
            with ServerProcess(artifact.path, options.server, log=log) as process:
                endpoint, _ = process.ready()
                evaluation.answer(rows, endpoint)
        evaluation.judge(rows)
        scored = evaluation.score(rows, gold)
    if evaluation.options.limit is None and "pass_at_k" in scored:
        record(artifact.path, {evaluation.suite.name: scored})
    return name, scored
