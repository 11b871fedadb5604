"""`pangu-train problems`: problems in words (problems.jsonl) from a benchmark or your own, a part of them held out.

Your own are in words already and stay as they are. Of a benchmark's problems with tests the docstring becomes the
words; imports and signature follow, so that the model knows what is there. The suite's own solution becomes a
recorded answer, and a problem whose own solution fails in the sandbox is left out. Verdicts are kept in a journal
next to --output; the same command goes on.
"""

import ast
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.evaluation.suites import suite_file
from pangu_training.evaluation.words import problem_row, read_problems, write_problems
from pangu_training.stage.errors import DataError
from pangu_training.stage.options import argument, counted, number_within, option
from pangu_training.stage.output import require_new

if TYPE_CHECKING:
    from pangu_training.evaluation.problem import Problem
    from pangu_training.sandbox.execution import Policy

HELD_OUT_SHARE = 0.1
NO_STATEMENT = "English description is not available"  # all that some rows of LeetCodeDataset say
SHOWN_FAILURES = 10
OWN = "problems:"
HELD_OUT = "held-out problems"

# Rows, why others are left out (by id), and what the report says of where they come from.
Collected = tuple[list[dict[str, Any]], dict[str, str], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemsOptions:
    """Where problems come from, and how many are held out."""

    source: str = argument(
        "leetcode:FILE (LeetCodeDataset), humaneval:FILE for problems in HumanEval's form, or problems:FILE",
        metavar="FORM:FILE",
        reads=suite_file,
    )
    output: Path = option("problems.jsonl to write", metavar="FILE", writes="file")
    ids: str | None = option("LeetCode's question ids from A to B, as FORM:FILE#A-B", None, metavar="A-B")
    force: bool = option("replace files that are there", False)
    held_out: Path | None = option(
        "write a part of the problems there", None, metavar="FILE", writes="file", group=HELD_OUT
    )
    held_out_share: float | None = option(
        f"of all problems, the same of each difficulty (default: {HELD_OUT_SHARE})",
        None,
        type=number_within(0, 1),
        metavar="X",
        group=HELD_OUT,
        exclusive="size",
    )
    held_out_count: int | None = counted("this many instead", None, group=HELD_OUT, exclusive="size")
    seed: int = option("draws them", 0, group=HELD_OUT)
    no_check: bool = option("do not run the suite's own solutions", False, group="sandbox")
    unsafe: bool = option("run them even where they cannot be confined", False, group="sandbox")


def collect_problems(options: ProblemsOptions) -> None:
    """Convert, check, split, write, report.

    Raises:
        SuiteError: no such suite, or it has no tests that problems in words can carry.
        DataError: no problem is left, or none for training.
        OutputError: a file is there already.
    """
    held_out_size = (options.held_out_share, options.held_out_count)
    if options.held_out is None and held_out_size != (None, None):
        raise DataError("the held-out problems need a file: give --held-out")
    outputs = [options.output, *([options.held_out] if options.held_out else [])]
    require_new(*outputs, force=options.force)
    rows, left_out, report = _own(options) if options.source.startswith(OWN) else _of_suite(options)
    held_out: set[str] = set()
    if options.held_out:
        judged = [row for row in rows if row.get("tests")]
        if not judged:
            raise DataError(f"no problem of {options.source} has tests, to judge held-out answers: add some")
        count = _count(len(judged), len(rows), *held_out_size)
        held_out = held_out_ids(judged, count, options.seed)
        write_problems(options.held_out, (row for row in rows if row["id"] in held_out))
    training = [row for row in rows if row["id"] not in held_out]
    write_problems(options.output, training)

    for id, reason in list(left_out.items())[:SHOWN_FAILURES]:
        print(f"left out: {id}: {reason}")
    print(f"{options.output}: {len(training)} problems of {report['suite']}; {len(left_out)} left out")
    if held_out:
        print(f"{options.held_out}: {len(held_out)} held out")
    result = {
        "output": str(options.output),
        **report,
        "problems": _by_difficulty(training),
        "held_out": _by_difficulty(row for row in rows if row["id"] in held_out),
        "left_out": left_out,
    }
    print(json.dumps(result))


def _own(options: ProblemsOptions) -> Collected:
    file = read_problems(Path(options.source.removeprefix(OWN)))
    report = {"suite": "problems", "suite_sha256": file.sha256, "checked": False}
    return [dict(row.fields) for row in file.rows], {}, report


def _of_suite(options: ProblemsOptions) -> Collected:
    from pangu_training.evaluation.judging import policy_of
    from pangu_training.evaluation.suites import read_suite

    suite = read_suite(options.source + (f"#{options.ids}" if options.ids else ""))
    rows = [row_of(problem) for problem in suite.problems]
    left_out = {row["id"]: "it has no statement" for row in rows if NO_STATEMENT in row["prompt"]}
    if not options.no_check:
        journal = options.output.with_name(f".{options.output.name}.journal")
        left_out |= failures(rows, journal, policy_of(suite, unsafe=options.unsafe))
    rows = [row for row in rows if row["id"] not in left_out]
    if not rows:
        id, reason = next(iter(left_out.items()))
        raise DataError(f"no problem of {options.source} can be used: {id}: {reason}")
    report = {"suite": suite.name, "suite_sha256": suite.sha256, "checked": not options.no_check}
    return rows, left_out, report


def row_of(problem: "Problem") -> dict[str, Any]:
    """A problem of a suite as a row of problems.jsonl.

    Raises:
        SuiteError: it has no asserts, or is asked for by more than a signature with a docstring.
    """
    from pangu_training.evaluation.extraction import preamble
    from pangu_training.evaluation.judging import check_of
    from pangu_training.evaluation.problem import CheckTests, SuiteError

    if not isinstance(problem.tests, CheckTests) or problem.suffix is not None or problem.words is not None:
        raise SuiteError(f"{problem.suite} makes no problems in words: give leetcode:FILE or humaneval:FILE")
    setup = problem.setup or preamble(problem)  # HumanEval's tests use its prompts' helpers
    about = {"difficulty": problem.difficulty, "question_id": problem.question_id}
    return {
        "id": f"{problem.suite}/{problem.task_id}",
        "prompt": words_of(problem),
        "entry_point": problem.entry_point,
        "tests": check_of(problem).test,
        "setup": setup,
        "answers": [{"text": problem.canonical_program.removeprefix(setup), "source": problem.suite}],
        **{name: value for name, value in about.items() if value is not None},
    }


def words_of(problem: "Problem") -> str:
    """The docstring, then the code that is there: imports, helpers, and the signature to begin with."""
    from pangu_training.evaluation.extraction import parse
    from pangu_training.evaluation.styles import text_and_code

    text, code = text_and_code(problem)
    setup = parse(problem.setup) or ast.Module([], [])
    imports = [ast.unparse(node) for node in setup.body if isinstance(node, ast.Import | ast.ImportFrom)]
    kind = "function" if problem.target == problem.entry_point else "class"
    request = f"Write the whole {kind} {problem.target}. All that stands before it here is there already."
    parts = (text.replace("\N{NO-BREAK SPACE}", " ").strip(), request, "\n".join(imports), code)
    return "\n\n".join(filter(None, parts)) + "\n"


def failures(rows: Sequence[Mapping[str, Any]], journal: Path, policy: "Policy") -> dict[str, str]:
    """The rows whose own answer does not pass: id -> how it came out. Verdicts are kept in `journal`.

    Raises:
        SandboxError: programs cannot be confined here.
    """
    from pangu_training.evaluation.judging import verdicts
    from pangu_training.evaluation.suites import problem_of
    from pangu_training.sandbox.execution import Outcome

    problems = [problem_of(problem_row(json.dumps(row).encode(), row["id"])) for row in rows]
    programs = [(problem, row["answers"][0]["text"]) for problem, row in zip(problems, rows, strict=True)]
    return {
        row["id"]: f"{result.outcome}: {result.reason}"
        for row, result in zip(rows, verdicts(journal, programs, policy), strict=True)
        if result.outcome is not Outcome.PASSED
    }


def held_out_ids(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> set[str]:
    """`count` ids, each difficulty by its share.

    Who is drawn depends on seed and id: when other problems come or go, little changes.
    """
    from pangu_training.stage.line_file import key_of

    by_difficulty: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_difficulty[row.get("difficulty", "")].append(row["id"])
    shares = {name: divmod(count * len(ids), len(rows)) for name, ids in by_difficulty.items()}
    rest = count - sum(whole for whole, _ in shares.values())
    rounded_up = sorted(shares, key=lambda name: (-shares[name][1], name))[:rest]
    drawn: set[str] = set()
    for name, ids in by_difficulty.items():
        size = shares[name][0] + (name in rounded_up)
        drawn.update(sorted(ids, key=lambda id: key_of(seed, id))[:size])
    return drawn


def _count(judged: int, problems: int, share: float | None, count: int | None) -> int:
    wanted = count or max(1, round(judged * (HELD_OUT_SHARE if share is None else share)))
    if wanted > judged:
        raise DataError(f"{wanted} cannot be held out: only {judged} problems have tests")
    if wanted == problems:
        raise DataError(f"{wanted} held out of {problems} problems leave none to train on: hold out fewer")
    return wanted


def _by_difficulty(rows: Any) -> dict[str, int]:
    counts = Counter(row.get("difficulty", "") for row in rows)
    return {"all": counts.total(), **{name: counts[name] for name in sorted(counts) if name}}
