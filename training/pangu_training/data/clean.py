"""`pangu-train clean`: filter problems, take out what benchmarks have, and near duplicates.

Rows pass unchanged. Each rejected one is kept in --rejected with its rule and reason; --report says in Markdown what
went and why, and lists the candidates for contamination that stay, for a person to look at.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_training.data.filters import Filter, Rejection
from pangu_training.evaluation.suites import suite_file
from pangu_training.evaluation.words import ProblemRow, read_problems, write_problems
from pangu_training.stage.errors import DataError
from pangu_training.stage.options import argument, counted, number_within, option
from pangu_training.stage.output import require_new, write_file

if TYPE_CHECKING:
    from pangu_training.data.cleaning_report import Finding
    from pangu_training.data.contamination import Benchmark

HUMAN_EVAL = "humaneval"
CONTAMINATED, NEAR_DUPLICATE = "contaminated", "near-duplicate"
RULES, NEAR, AGAINST = "filter rules", "near duplicates", "decontamination"
USUAL = Filter()


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanOptions:
    """What is cleaned, and by which limits."""

    problems: Path = argument("problems.jsonl")
    output: Path = option("the rows that stay", metavar="FILE", writes="file")
    rejected: Path = option("the others, with reasons", metavar="FILE", writes="file")
    report: Path | None = option("what went and why, in Markdown", None, metavar="FILE", writes="file")
    force: bool = option("replace files that are there", False)
    min_words: int = counted("of a prompt", USUAL.min_words, group=RULES)
    max_prompt_characters: int = counted("about 4 a token", USUAL.max_prompt_characters, group=RULES)
    max_characters: int = counted("of a prompt and its shortest answer", USUAL.max_characters, group=RULES)
    refusal_words: int = counted(
        "a shorter prompt that is sorry is a refusal", USUAL.refusal_words, group=RULES
    )
    label: tuple[str, ...] = option(
        "no prompt may contain it", (), action="append", metavar="TEXT", group=RULES
    )
    function_level: bool = option("drop prompts that ask for no function", False, group=RULES)
    similarity: float = option(
        "Jaccard similarity of two prompts from which the later one goes",
        0.7,
        type=number_within(0.1, 1),
        metavar="X",
        group=NEAR,
    )
    shingle_words: int = counted("runs of this many words are compared", 5, group=NEAR)
    against: tuple[str, ...] = option(
        "a suite besides HumanEval, as pangu-bench takes it; also problems:FILE without tests",
        (),
        action="append",
        metavar="FORM:FILE",
        reads=suite_file,
        group=AGAINST,
    )
    no_decontamination: bool = option("compare with nothing, HumanEval included", False, group=AGAINST)
    candidate_words: int = counted("a shared run of this many words is reported", 10, group=AGAINST)
    drop_words: int = counted("a shared run of this many words drops the row", 13, group=AGAINST)
    form_tasks: int = counted(
        "what more tasks of a suite share is its form, and not compared", 2, group=AGAINST
    )


def clean(options: CleanOptions) -> None:
    """Filter, decontaminate, remove near duplicates, write, report.

    Raises:
        DataError: the file is none of problems, nothing of it would be left, or the lengths contradict.
        SuiteError: a suite to compare with is not there.
        OutputError: a file is there already.
    """
    from pangu_training.data.cleaning_report import Cleaning, report

    outputs = [options.output, options.rejected, *([options.report] if options.report else [])]
    require_new(*outputs, force=options.force)
    file = read_problems(options.problems)
    benchmarks = _benchmarks(options)

    rejections = filtered(file.rows, options)
    findings = compared([row for row in file.rows if row.id not in rejections], benchmarks)
    rejections |= contaminated(findings)
    rejections |= duplicated([row for row in file.rows if row.id not in rejections], options)
    cleaning = Cleaning(file, rejections, findings, benchmarks)

    if not cleaning.kept:
        raise DataError(f"no row of {file.path} would stay ({cleaning.in_words()}): loosen the rules")
    if options.report:
        write_file(options.report, report(cleaning).encode())
    write_problems(options.rejected, cleaning.rejected)
    write_problems(options.output, cleaning.kept)
    print(f"{options.output}: {len(cleaning.kept)} of {len(file.rows)} rows stay; {cleaning.in_words()}")
    print(json.dumps({"output": str(options.output), **cleaning.figures()}))


def filtered(rows: Sequence[ProblemRow], options: CleanOptions) -> dict[str, Rejection]:
    """The rows that break a filter rule: id -> why."""
    rules = Filter(
        min_words=options.min_words,
        max_prompt_characters=options.max_prompt_characters,
        max_characters=options.max_characters,
        refusal_words=options.refusal_words,
        labels=(*USUAL.labels, *options.label),
        function_level=options.function_level,
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


def duplicated(rows: Sequence[ProblemRow], options: CleanOptions) -> dict[str, Rejection]:
    """The rows that nearly repeat the prompt of an earlier one that stays: id -> which."""
    from pangu_training.data.near_duplicates import near_duplicates

    found = near_duplicates(
        [row.prompt for row in rows], similarity=options.similarity, shingle_words=options.shingle_words
    )
    return {
        rows[place].id: Rejection(NEAR_DUPLICATE, f"{similarity:.2f} like {rows[kept].id}")
        for place, (kept, similarity) in found.items()
    }


def _benchmarks(options: CleanOptions) -> list["Benchmark"]:
    """HumanEval, unless a file of it is given, and the suites given."""
    from pangu_training.data.contamination import Lengths, read_benchmark

    if options.no_decontamination:
        if options.against:
            raise DataError("--no-decontamination compares with nothing: leave it out, or --against")
        print(
            "WARNING: compared with no benchmark, HumanEval included: scores of a model that is trained on "
            "these rows may be memory",
            file=sys.stderr,
        )
        return []
    if options.drop_words < options.candidate_words:
        raise DataError("--drop-words is below --candidate-words: what drops a row makes a candidate first")
    lengths = Lengths(
        candidate_words=options.candidate_words,
        drop_words=options.drop_words,
        form_tasks=options.form_tasks,
    )
    given = [read_benchmark(name, lengths) for name in dict.fromkeys(options.against)]
    if not any(benchmark.suite.name == HUMAN_EVAL for benchmark in given):
        given.insert(
            0, read_benchmark(HUMAN_EVAL, lengths)
        )  # a file of its form can hold your own problems only
    return given
