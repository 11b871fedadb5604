"""What `pangu-train clean` took out and why: as rows, figures and Markdown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, NamedTuple

from pangu_training.data.contamination import CANDIDATE, DOCSTRING, RUN, Benchmark, Match
from pangu_training.data.filters import Rejection
from pangu_training.evaluation.words import ProblemFile

SHOWN_CHARACTERS = 160  # of shared words


class Finding(NamedTuple):
    """What a row shares with a task of a suite."""

    row_id: str
    benchmark: Benchmark
    match: Match


@dataclass(frozen=True, slots=True)
class Cleaning:
    """A file, the rows of it that go and why, and what they share with the benchmarks."""

    file: ProblemFile
    rejections: Mapping[str, Rejection]
    findings: Sequence[Finding]
    benchmarks: Sequence[Benchmark]

    @property
    def kept(self) -> list[Mapping[str, Any]]:
        """The rows that stay, as they were."""
        return [row.fields for row in self.file.rows if row.id not in self.rejections]

    @property
    def rejected(self) -> list[Mapping[str, Any]]:
        """The others, each with its `rejected`: rule and reason."""
        return [
            {**row.fields, "rejected": {"rule": rejection.rule, "reason": rejection.reason}}
            for row in self.file.rows
            if (rejection := self.rejections.get(row.id))
        ]

    def by_rule(self) -> dict[str, int]:
        """How many rows each rule took."""
        return dict(Counter(rejection.rule for rejection in self.rejections.values()).most_common())

    def in_words(self) -> str:
        """`by_rule` in a line."""
        return ", ".join(f"{rule} {count}" for rule, count in self.by_rule().items()) or "none rejected"

    def found(self, benchmark: Benchmark, *rules: str) -> list[Finding]:
        """What was found by `rules` in comparison with `benchmark`."""
        return [
            finding
            for finding in self.findings
            if finding.benchmark is benchmark and finding.match.rule in rules
        ]

    def staying(self, benchmark: Benchmark) -> list[Finding]:
        """The candidates that stay."""
        return [
            finding for finding in self.found(benchmark, CANDIDATE) if finding.row_id not in self.rejections
        ]

    def figures(self) -> dict[str, Any]:
        """All as one JSON object."""
        return {
            "rows": len(self.file.rows),
            "sha256": self.file.sha256,
            "kept": len(self.file.rows) - len(self.rejections),
            "rejected": self.by_rule(),
            "compared_with": [self._figures(benchmark) for benchmark in self.benchmarks],
        }

    def _figures(self, benchmark: Benchmark) -> dict[str, Any]:
        candidates, dropped = self.found(benchmark, CANDIDATE), self.found(benchmark, RUN, DOCSTRING)
        return {
            "suite": benchmark.name,
            "sha256": benchmark.suite.sha256,
            "tasks": len(benchmark.suite.problems),
            "candidates": _rows(candidates),
            "tasks_of_candidates": _tasks(candidates),
            "dropped_by_run": _rows(self.found(benchmark, RUN)),
            "dropped_by_docstring": _rows(self.found(benchmark, DOCSTRING)),
            "tasks_of_dropped": _tasks(dropped),
            "candidates_that_stay": _rows(self.staying(benchmark)),
        }


def report(cleaning: Cleaning) -> str:
    """The whole cleaning as Markdown."""
    figures = cleaning.figures()
    lines = [
        f"# {cleaning.file.path.name}, cleaned",
        "",
        f"{figures['kept']} of {figures['rows']} rows stay. sha256 of the file: `{figures['sha256']}`.",
        "",
        "| rule | rows that go |",
        "| --- | --- |",
        *(f"| {rule} | {count} |" for rule, count in figures["rejected"].items()),
        "",
        "## Contamination",
        "",
    ]
    if not cleaning.benchmarks:
        return "\n".join([*lines, "**Compared with no benchmark**, HumanEval included.", ""])
    lengths = cleaning.benchmarks[0].lengths
    lines += [
        f"A row that shares a run of {lengths.candidate_words} words with a task is a candidate. One that shares "
        f"{lengths.drop_words}, or a task's docstring, goes.",
        "",
        "| suite | tasks | candidates | of tasks | go by a run | by a docstring | of tasks | candidates that stay |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    shown = [name for name in figures["compared_with"][0] if name != "sha256"]
    lines += [f"| {' | '.join(str(suite[name]) for name in shown)} |" for suite in figures["compared_with"]]
    for benchmark in cleaning.benchmarks:
        lines += _listed(f"Rows that go: {benchmark.name}", cleaning.found(benchmark, RUN, DOCSTRING))
        lines += _listed(f"Candidates that stay: {benchmark.name}", cleaning.staying(benchmark))
    return "\n".join([*lines, ""])


def _listed(title: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    rows = [
        f"| {row_id} | {match.task_id} | {match.rule} | {shorten(match.words, SHOWN_CHARACTERS)} |"
        for row_id, _, match in findings
    ]
    return ["", f"### {title}", "", "| row | task | rule | words |", "| --- | --- | --- | --- |", *rows]


def _rows(findings: Iterable[Finding]) -> int:
    return len({finding.row_id for finding in findings})


def _tasks(findings: Iterable[Finding]) -> int:
    return len({finding.match.task_id for finding in findings})
