"""`pangu-train tests`: tests for problems that have none, by a model that writes asserts and programs.

An assert is kept when several of the programs agree on it: it is the model's repeated opinion, not a specification.
Answers and verdicts are kept in a journal next to --output; the same command goes on there.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.asking.options import AskingOptions, GenerationOptions
from pangu_training.asking.questions import Chat, cost_words, costs, journal_for
from pangu_training.evaluation.words import ProblemRow, read_problems, write_problems
from pangu_training.stage.options import argument, counted, nested, option

if TYPE_CHECKING:
    from pangu_training.data.drafts import Draft

CPU_SECONDS = 3  # of a program over a problem's asserts, and of the asserts' own work
AGREEMENT = "agreement"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTestsOptions:
    """Which problems, how many asserts and programs must agree, and which server is asked."""

    problems: Path = argument("problems.jsonl")
    output: Path = option("problems.jsonl to write", metavar="FILE", writes="results")
    asserts: int = counted("asserts asked for in an answer", 8, group=AGREEMENT)
    assert_answers: int = counted("such answers a problem, put together", 3, group=AGREEMENT)
    solutions: int = counted("programs a problem", 8, group=AGREEMENT)
    least_tests: int = counted("asserts that must be agreed on", 3, group=AGREEMENT)
    least_agreeing: int = counted("programs that must agree on them", 3, group=AGREEMENT)
    unsafe: bool = option(
        "run programs even where they cannot be confined: they can read your files", False, group=AGREEMENT
    )
    generation: GenerationOptions = nested(GenerationOptions, temperature=0.8, max_tokens=1024)
    asking: AskingOptions = nested(AskingOptions)


def write_tests(options: WriteTestsOptions) -> None:
    """Ask for asserts and for programs, run these, keep what is agreed on, write the file, report."""
    from pangu_training.asking.endpoint import running
    from pangu_training.data.drafts import judged, with_asserts, with_programs
    from pangu_training.evaluation.judging import policy_of, sandbox_configuration
    from pangu_training.evaluation.problem import Suite

    file, asking = read_problems(options.problems), options.asking
    policy = policy_of(Suite(name="problems", problems=(), sha256=file.sha256), unsafe=options.unsafe)
    policy = replace(policy, cpu_seconds=CPU_SECONDS, check_cpu_seconds=CPU_SECONDS)
    sandbox_configuration(policy)  # raises where programs cannot be run, before anything is asked
    least = options.least_tests, options.least_agreeing
    with journal_for("tests", options.output) as journal:
        chat = Chat(running(asking.base_url, asking.model), journal, asking, options.generation)
        untested = [row for row in file.rows if not row.tests]
        drafts, assert_replies = with_asserts(untested, chat, options.assert_answers, options.asserts)
        enough = [draft for draft in drafts if len(draft.asserts) >= options.least_tests]
        filled, program_replies = with_programs(enough, chat, options.solutions)
        by_id = {draft.problem.task_id: draft for draft in (*drafts, *judged(filled, journal, policy))}
        tested = {name: draft for name, draft in by_id.items() if not draft.reason(*least)}
        model = chat.endpoint.model
        write_problems(
            options.output,
            [tested_row(row, tested[row.id], model) if row.id in tested else row.fields for row in file.rows],
        )
    spent = {"asserts": costs(assert_replies, asking), "programs": costs(program_replies, asking)}
    total = costs((*assert_replies, *program_replies), asking)
    reasons = Counter(reason for draft in by_id.values() if (reason := draft.reason(*least)))
    result = {
        "output": str(options.output),
        "problems": len(file.rows),
        "had_tests": len(file.rows) - len(untested),
        "got_tests": len(tested),
        "without_tests": dict(reasons.most_common()),
        "asserts": sum(len(draft.consensus.asserts) for draft in tested.values()),
        "costs": {**spent, "total": total},
    }
    words = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"
    print(f"{options.output}: {len(tested)} of {len(untested)} problems got tests; without: {words}")
    for what, cost in {**spent, "together": total}.items():
        print(f"{what}: {cost_words(cost)}")
    print(json.dumps(result))


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
