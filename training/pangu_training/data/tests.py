"""`pangu-train tests`: tests for problems that have none, by a model that writes asserts and programs.

Kept are asserts on which several of its programs agree: an opinion that the model holds repeatedly, no specification.
Answers and verdicts are kept in a journal beside --output; the same command goes on there.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.asking.questions import (
    Chat,
    add_asking_arguments,
    add_generation_arguments,
    cost_words,
    costs,
    journal_for,
)
from pangu_training.evaluation.words import ProblemRow, read_problems, write_problems
from pangu_training.stage.command import whole_number

if TYPE_CHECKING:
    from pangu_training.data.drafts import Draft

CPU_SECONDS = 3  # of a program over a problem's asserts, and of the asserts' own work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("problems", type=Path, help="problems.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="problems.jsonl to write")
    group = parser.add_argument_group("agreement")
    for name, default, words in (
        ("asserts", 8, "asserts asked for in an answer"),
        ("assert-answers", 3, "such answers a problem, put together"),
        ("solutions", 8, "programs a problem"),
        ("least-tests", 3, "asserts that must be agreed on"),
        ("least-agreeing", 3, "programs that must agree on them"),
    ):
        group.add_argument(
            f"--{name}",
            type=whole_number(1),
            default=default,
            metavar="N",
            help=f"{words} (default: {default})",
        )
    group.add_argument(
        "--unsafe",
        action="store_true",
        help="run programs even where they cannot be confined: they can read your files",
    )
    add_generation_arguments(parser, temperature=0.8, max_tokens=1024)
    add_asking_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask for asserts and for programs, run these, keep what is agreed on, write the file, report."""
    from pangu_training.asking.endpoint import running
    from pangu_training.data.drafts import judged, with_asserts, with_programs
    from pangu_training.evaluation.judging import policy_of, sandbox_configuration
    from pangu_training.evaluation.problem import Suite

    file = read_problems(arguments.problems)
    policy = policy_of(Suite(name="problems", problems=(), sha256=file.sha256), unsafe=arguments.unsafe)
    policy = replace(policy, cpu_seconds=CPU_SECONDS, check_cpu_seconds=CPU_SECONDS)
    sandbox_configuration(policy)  # raises where programs cannot be run, before anything is asked
    least = arguments.least_tests, arguments.least_agreeing
    with journal_for("tests", arguments.output) as journal:
        chat = Chat(running(arguments.base_url, arguments.model), journal, arguments)
        untested = [row for row in file.rows if not row.tests]
        drafts, assert_replies = with_asserts(untested, chat, arguments.assert_answers, arguments.asserts)
        enough = [draft for draft in drafts if len(draft.asserts) >= arguments.least_tests]
        filled, program_replies = with_programs(enough, chat, arguments.solutions)
        by_id = {draft.problem.task_id: draft for draft in (*drafts, *judged(filled, journal, policy))}
        tested = {name: draft for name, draft in by_id.items() if not draft.reason(*least)}
        model = chat.endpoint.model
        write_problems(
            arguments.output,
            [tested_row(row, tested[row.id], model) if row.id in tested else row.fields for row in file.rows],
        )
    spent = {"asserts": costs(assert_replies, arguments), "programs": costs(program_replies, arguments)}
    total = costs((*assert_replies, *program_replies), arguments)
    reasons = Counter(reason for draft in by_id.values() if (reason := draft.reason(*least)))
    result = {
        "output": str(arguments.output),
        "problems": len(file.rows),
        "had_tests": len(file.rows) - len(untested),
        "got_tests": len(tested),
        "without_tests": dict(reasons.most_common()),
        "asserts": sum(len(draft.consensus.asserts) for draft in tested.values()),
        "costs": {**spent, "total": total},
    }
    words = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"
    print(f"{arguments.output}: {len(tested)} of {len(untested)} problems got tests; without: {words}")
    for what, cost in {**spent, "together": total}.items():
        print(f"{what}: {cost_words(cost)}")
    print(json.dumps(result))
    return 0


def tested_row(row: ProblemRow, draft: "Draft", model: str) -> dict[str, Any]:
    """The problem's row with tests, a program that passes them, and where both come from."""
    from pangu_training.data.agreement import check_source

    program = draft.programs[draft.consensus.programs[0]]
    return {
        **row.fields,
        "prompt": draft.problem.words,
        "entry_point": draft.problem.entry_point,
        "tests": check_source(draft.kept()),
        "answers": [*row.fields.get("answers", ()), {"text": program, "source": model}],
        "tests_by": {
            "model": model,
            "asserts": len(draft.asserts),
            "asserts_kept": len(draft.consensus.asserts),
            "programs": len(draft.programs),
            "programs_agreeing": len(draft.consensus.programs),
        },
    }
