"""`pangu-train clean`: filter problems, take out what benchmarks have, and near duplicates.

Rows pass unchanged. Each rejected one is kept in --rejected with its rule and reason; --report says in Markdown what
went and why, and lists the candidates for contamination that stay, for a person to look at.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_training.data.filters import Filter, Rejection
from pangu_training.evaluation.words import ProblemRow, read_problems, write_problems
from pangu_training.stage.command import number_within, whole_number
from pangu_training.stage.errors import DataError
from pangu_training.stage.output import require_new, write_file

if TYPE_CHECKING:
    from pangu_training.data.cleaning_report import Finding
    from pangu_training.data.contamination import Benchmark

HUMAN_EVAL = "humaneval"
CONTAMINATED, NEAR_DUPLICATE = "contaminated", "near-duplicate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("problems", type=Path, help="problems.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the rows that stay")
    parser.add_argument(
        "--rejected", type=Path, required=True, metavar="FILE", help="the others, with reasons"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="what went and why, in Markdown")
    parser.add_argument("--force", action="store_true", help="replace files that are there")

    def number(group: argparse._ArgumentGroup, flag: str, default: int, help_text: str) -> None:
        help_text += " (default: %(default)s)"
        group.add_argument(flag, type=whole_number(1), default=default, metavar="N", help=help_text)

    usual = Filter()
    group = parser.add_argument_group("filter rules")
    number(group, "--min-words", usual.min_words, "of a prompt")
    number(group, "--max-prompt-characters", usual.max_prompt_characters, "about 4 a token")
    number(group, "--max-characters", usual.max_characters, "of a prompt and its shortest answer")
    number(group, "--refusal-words", usual.refusal_words, "a shorter prompt that is sorry is a refusal")
    group.add_argument(
        "--label", action="append", default=[], metavar="TEXT", help="no prompt may contain it"
    )
    group.add_argument("--function-level", action="store_true", help="drop prompts that ask for no function")
    group = parser.add_argument_group("near duplicates")
    group.add_argument(
        "--similarity",
        type=number_within(0.1, 1),
        default=0.7,
        metavar="X",
        help="Jaccard similarity of two prompts from which the later one goes (default: %(default)s)",
    )
    number(group, "--shingle-words", 5, "what is compared are runs of so many words")
    group = parser.add_argument_group("decontamination")
    group.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="FORM:FILE",
        help="a suite besides HumanEval, as pangu-bench takes it; also problems:FILE without tests",
    )
    group.add_argument(
        "--no-decontamination", action="store_true", help="compare with nothing, HumanEval included"
    )
    number(group, "--candidate-words", 10, "a shared run of so many is reported")
    number(group, "--drop-words", 13, "a shared run of so many drops the row")
    number(group, "--form-tasks", 2, "what more tasks of a suite share is its form, and not compared")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Filter, decontaminate, remove near duplicates, write, report.

    Raises:
        DataError: the file is none of problems, nothing of it would be left, or the lengths contradict.
        SuiteError: a suite to compare with is not there.
        OutputError: a file is there already.
    """
    from pangu_training.data.cleaning_report import Cleaning, report

    outputs = [arguments.output, arguments.rejected, *([arguments.report] if arguments.report else [])]
    require_new(*outputs, force=arguments.force)
    file = read_problems(arguments.problems)
    benchmarks = _benchmarks(arguments)

    rejections = filtered(file.rows, arguments)
    findings = compared([row for row in file.rows if row.id not in rejections], benchmarks)
    rejections |= contaminated(findings)
    rejections |= duplicated([row for row in file.rows if row.id not in rejections], arguments)
    cleaning = Cleaning(file, rejections, findings, benchmarks)

    if not cleaning.kept:
        raise DataError(f"no row of {file.path} would stay ({cleaning.in_words()}): loosen the rules")
    if arguments.report:
        write_file(arguments.report, report(cleaning).encode())
    write_problems(arguments.rejected, cleaning.rejected)
    write_problems(arguments.output, cleaning.kept)
    print(f"{arguments.output}: {len(cleaning.kept)} of {len(file.rows)} rows stay; {cleaning.in_words()}")
    print(json.dumps({"output": str(arguments.output), **cleaning.figures()}))


def filtered(rows: Sequence[ProblemRow], arguments: argparse.Namespace) -> dict[str, Rejection]:
    """The rows that break a filter rule: id -> why."""
    usual = Filter()
    rules = Filter(
        min_words=arguments.min_words,
        max_prompt_characters=arguments.max_prompt_characters,
        max_characters=arguments.max_characters,
        refusal_words=arguments.refusal_words,
        labels=(*usual.labels, *arguments.label),
        function_level=arguments.function_level,
        prompts={row.id: row.prompt for row in rows},
    )
    return {row.id: rejection for row in rows if (rejection := rules.rejection(row))}


def compared(rows: Sequence[ProblemRow], benchmarks: Iterable["Benchmark"]) -> list["Finding"]:
    """What rows share with tasks of the benchmarks."""
    from tqdm import tqdm

    from pangu_training.data.cleaning_report import Finding

    return [
        Finding(row.id, benchmark, match)
        for benchmark in benchmarks
        for row in tqdm(rows, desc=f"against {benchmark.name}", unit="row", disable=None)
        for match in benchmark.matches([row.prompt, *(answer.text for answer in row.answers)])
    ]


def contaminated(findings: Iterable["Finding"]) -> dict[str, Rejection]:
    """The rows of which too much was found: id -> the first find."""
    from pangu_training.data.contamination import CANDIDATE

    rejections: dict[str, Rejection] = {}
    for row_id, benchmark, match in findings:
        if match.rule != CANDIDATE:
            reason = f"{match.rule} of {match.task_id} in {benchmark.name}: {match.words}"
            rejections.setdefault(row_id, Rejection(CONTAMINATED, reason))
    return rejections


def duplicated(rows: Sequence[ProblemRow], arguments: argparse.Namespace) -> dict[str, Rejection]:
    """The rows that nearly repeat the prompt of an earlier one that stays: id -> which."""
    from pangu_training.data.near_duplicates import near_duplicates

    found = near_duplicates(
        [row.prompt for row in rows], similarity=arguments.similarity, shingle_words=arguments.shingle_words
    )
    return {
        rows[place].id: Rejection(NEAR_DUPLICATE, f"{similarity:.2f} like {rows[kept].id}")
        for place, (kept, similarity) in found.items()
    }


def _benchmarks(arguments: argparse.Namespace) -> list["Benchmark"]:
    """HumanEval, unless a file of it is given, and the suites given."""
    from pangu_training.data.contamination import Lengths, read_benchmark

    if arguments.no_decontamination:
        if arguments.against:
            raise DataError("--no-decontamination compares with nothing: leave it out, or --against")
        print(
            "WARNING: compared with no benchmark, HumanEval included: scores of a model that is trained on "
            "these rows may be memory",
            file=sys.stderr,
        )
        return []
    if arguments.drop_words < arguments.candidate_words:
        raise DataError("--drop-words is below --candidate-words: what drops a row makes a candidate first")
    lengths = Lengths(
        candidate_words=arguments.candidate_words,
        drop_words=arguments.drop_words,
        form_tasks=arguments.form_tasks,
    )
    given = [read_benchmark(name, lengths) for name in dict.fromkeys(arguments.against)]
    if not any(benchmark.suite.name == HUMAN_EVAL for benchmark in given):
        given.insert(
            0, read_benchmark(HUMAN_EVAL, lengths)
        )  # a file of its form can hold your own problems only
    return given
