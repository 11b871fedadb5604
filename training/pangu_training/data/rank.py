"""`pangu-train rank`: runs responses against their problems' tests, and makes one ranked pair a problem of them.

Verdicts are kept in a journal as they come: a command that was stopped goes on there, and no program is run again to
rank it by another rule.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pangu_training.data.ranked import write_ranked
from pangu_training.data.ranking import NO_PROGRAM, Judged, LeftOut, Pair, RankError, Rule, pair_of
from pangu_training.data.responses import RECORDED, Response, read_responses
from pangu_training.data.standings import in_words, standings
from pangu_training.evaluation.judging import policy_of, verdicts
from pangu_training.evaluation.problem import Problem
from pangu_training.evaluation.styles import style_for
from pangu_training.evaluation.suites import tested
from pangu_training.evaluation.words import read_problems
from pangu_training.sandbox.execution import DEFAULT_POLICY, Policy
from pangu_training.sandbox.tiers import tier
from pangu_training.stage.options import argument, counted, nested, option
from pangu_training.stage.output import require_new


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOptions:
    """What is ranked, by which rule, and where programs run."""

    problems: Path = argument("problems with tests, JSONL")
    responses: Path = argument("responses, JSONL, as `pangu-train sample` writes them")
    output: Path = option("the ranked pairs, for fit", metavar="FILE", writes="file")
    verdicts: Path | None = option(
        "their journal (default: next to the output)", None, metavar="FILE", writes="results"
    )
    force: bool = option("replace the output file", False)
    rule: Rule = nested(Rule)
    cpu_seconds: int = counted(
        "that a program may compute over all tests, or wait for nothing",
        DEFAULT_POLICY.cpu_seconds,
        metavar="S",
        group="sandbox",
    )
    unsafe: bool = option(
        "run programs even where they cannot be confined: they can read your files", False, group="sandbox"
    )


def rank(options: RankOptions) -> None:
    """Judge, choose, write, report.

    Raises:
        OutputError: the output is there already.
        RankError: no problem gives a pair.
    """
    rule, output = options.rule, options.output
    require_new(output, force=options.force)
    file, responses = read_problems(options.problems), read_responses(options.responses)
    suite = tested(file)
    policy = replace(
        policy_of(suite, unsafe=options.unsafe),
        cpu_seconds=options.cpu_seconds,
        idle_seconds=options.cpu_seconds,
    )
    problems = {problem.task_id: problem for problem in suite.problems}
    journal = options.verdicts or output.with_name(f"{output.stem}.verdicts.jsonl")
    answers = judge(problems, responses, policy, journal)
    ranked = {
        row.id: pair_of(answers[row.id], rule) if row.id in problems else LeftOut.NO_TESTS
        for row in file.rows
    }
    summary = standings(answers, ranked, rule)
    print(in_words(summary))
    if strangers := len(responses) - sum(map(len, answers.values())):
        print(f"{strangers} responses are to no problem with tests in {file.path}")
    if not summary.pairs:
        raise RankError("no problem gives a pair: sample what is missing, or loosen the rule")
    pairs = ((row, ranked[row.id]) for row in file.rows)
    write_ranked(output, [pair.row(row) for row, pair in pairs if isinstance(pair, Pair)])
    result = {"output": str(output), "responses": len(responses), **asdict(summary), "rule": asdict(rule)}
    print(json.dumps(result | {"sandbox": tier(unsafe=policy.unsafe).name}))


def judge(
    problems: Mapping[str, Problem], responses: Iterable[Response], policy: Policy, journal: Path
) -> dict[str, list[Judged]]:
    """Problem -> its responses, judged."""
    programs = [
        (response, program_of(problems[response.problem], response))
        for response in responses
        if response.problem in problems
    ]
    jobs = [(problems[response.problem], program) for response, program in programs if program]
    results = iter(verdicts(journal, jobs, policy))
    judged: dict[str, list[Judged]] = {task_id: [] for task_id in problems}
    for response, program in programs:
        result = next(results) if program else NO_PROGRAM
        judged[response.problem].append(Judged(response=response, program=program, result=result))
    return judged


def program_of(problem: Problem, response: Response) -> str:
    """The program in a response as it is trained on: without setup, and without blank lines around it."""
    if response.style == RECORDED:
        program = response.text
    else:
        program = style_for(problem, response.style).program(problem, response.text)
    return program.strip("\n").rstrip()
