"""`pangu-bench humaneval`: how many problems of a suite a model solves, and how sure that number is.

Answers and verdicts are rows in `--output`; a run that was interrupted goes on there. The score goes into the
artifact's manifest, which the server shows, unless --limit left problems out.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_bench.options import UsageError, add_answer_arguments, answer_options, running_server
from pangu_training.stage.command import add_server_arguments

if TYPE_CHECKING:
    from pangu_bench.evaluation import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("artifact", nargs="?", type=Path, help="folder that pangu-convert wrote")
    parser.add_argument(
        "--base-url",
        type=running_server,
        metavar="URL[=NAME]",
        help="ask a server that runs already, called NAME in the results; its key is in $OPENAI_API_KEY",
    )
    parser.add_argument("--gold", action="store_true", help="score the suite's own solutions alone")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the rows")
    add_answer_arguments(parser)
    add_server_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, judge, report; 1 when a gold solution fails, since then no score of this run can be trusted."""
    from pangu_bench.evaluation import evaluation_of, in_words

    if (arguments.artifact is not None) + (arguments.base_url is not None) + arguments.gold != 1:
        raise UsageError("give one of an artifact, --base-url and --gold")
    evaluation = evaluation_of(answer_options(arguments))
    gold = evaluation.gold(arguments.output)
    if arguments.gold:
        if not gold:
            raise UsageError(f"{evaluation.suite.name} has no gold solutions: {evaluation.suite.no_score}")
        result = {"suite": evaluation.suite.name, **gold}
        print(f"{evaluation.suite.name}: gold solutions pass {gold['passed']} of {gold['problems']}")
        for task_id in gold["failed"]:
            print(f"  {task_id} fails")
    else:
        name, score = _measure(arguments, evaluation, gold)
        result = {"model": name, **score}
        print(f"{name}: {in_words(score)}")
    print(json.dumps(result))
    return 1 if gold.get("failed") else 0


def _measure(
    arguments: argparse.Namespace, evaluation: "Evaluation", gold: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The model's name and its score."""
    from pangu_bench.artifacts import record, subject_of
    from pangu_bench.rows import RowFile
    from pangu_convert.artifact import read_artifact
    from pangu_training.asking.endpoint import file_stem, identity, running
    from pangu_training.asking.server_process import ServerProcess

    folder: Path = arguments.output
    if arguments.base_url is not None:
        endpoint = running(arguments.base_url.url)
        name = arguments.base_url.name or endpoint.model
        configuration = evaluation.configuration(identity(endpoint))
        with RowFile(evaluation.file(folder, name), configuration) as rows:
            evaluation.answer(rows, endpoint)
            evaluation.judge(rows)
            return name, evaluation.score(rows, gold)
    artifact = read_artifact(arguments.artifact)
    name = artifact.manifest.name
    subject = subject_of(artifact, arguments.device, arguments.threads)
    with RowFile(evaluation.file(folder, name), evaluation.configuration(subject)) as rows:
        if not evaluation.is_answered(rows):
            with ServerProcess(
                artifact.path,
                device=arguments.device,
                threads=arguments.threads,
                log=folder / f"{file_stem(name)}.server.log",
            ) as server:
                endpoint, _ = server.ready()
                evaluation.answer(rows, endpoint)
        evaluation.judge(rows)
        score = evaluation.score(rows, gold)
    if evaluation.options.limit is None and "pass_at_k" in score:
        record(artifact.path, {evaluation.suite.name: score})
    return name, score
