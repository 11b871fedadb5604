"""`pangu-train rank`: runs responses against their problems' tests, and makes one ranked pair a problem of them.

Verdicts are kept in a journal as they come: a command that was stopped goes on there, and no program is run again to
rank it by another rule.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
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
from pangu_training.stage.command import whole_number
from pangu_training.stage.errors import OutputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments; what they are stands in `Rule`."""
    rule = Rule()
    parser.add_argument("problems", type=Path, help="problems with tests, JSONL")
    parser.add_argument("responses", type=Path, help="responses, JSONL, as `pangu-train sample` writes them")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the ranked pairs, for fit"
    )
    parser.add_argument(
        "--verdicts", type=Path, metavar="FILE", help="their journal (default: beside the output)"
    )
    parser.add_argument("--force", action="store_true", help="replace the output file")
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--scores",
        type=float,
        nargs=4,
        default=rule.scores,
        metavar="SCORE",
        help="of a program that does not compile, ends in a runtime error, passes some tests, passes all "
        "(default: -1 -0.6 -0.3 1, CodeRL's)",
    )
    group.add_argument(
        "--partial",
        default=rule.partial,
        choices=("flat", "ratio"),
        help="ratio: in proportion to the tests passed, as in RLTF (default: %(default)s)",
    )
    group.add_argument(
        "--tie-bonus", type=float, default=rule.tie_bonus, help="a teacher's on a tie (default: %(default)s)"
    )
    group = parser.add_argument_group("pairs")
    group.add_argument(
        "--rejected",
        default=rule.rejected,
        choices=("random", "best", "worst"),
        help="which of the student's programs (default: %(default)s)",
    )
    group.add_argument("--require-pass", action="store_true", help="choose only programs that pass all tests")
    group.add_argument("--seed", type=int, default=rule.seed, help="of the draws (default: %(default)s)")
    group = parser.add_argument_group("sandbox")
    group.add_argument(
        "--cpu-seconds",
        type=whole_number(1),
        default=DEFAULT_POLICY.cpu_seconds,
        metavar="S",
        help="that a program may compute over all tests, or wait for nothing (default: %(default)s)",
    )
    group.add_argument(
        "--unsafe",
        action="store_true",
        help="run programs even where they cannot be confined: they can read your files",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Judge, choose, write, report.

    Raises:
        OutputError: the output is there already.
        RankError: no problem gives a pair.
    """
    options = {name: getattr(arguments, name) for name in Rule.__dataclass_fields__}
    rule, output = Rule(**options | {"scores": tuple(arguments.scores)}), Path(arguments.output)
    if output.exists() and not arguments.force:
        raise OutputError(f"{output} exists already: choose another --output, or replace it with --force")
    file, responses = read_problems(arguments.problems), read_responses(arguments.responses)
    suite = tested(file)
    policy = replace(
        policy_of(suite, unsafe=arguments.unsafe),
        cpu_seconds=arguments.cpu_seconds,
        idle_seconds=arguments.cpu_seconds,
    )
    problems = {problem.task_id: problem for problem in suite.problems}
    journal = arguments.verdicts or output.with_name(f"{output.stem}.verdicts.jsonl")
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
