"""One suite asked in one style: answers, verdicts and scores, and a run of the gold solutions."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pangu_bench.answers import answer, missing
from pangu_bench.environment import now
from pangu_bench.judging import gold_verdicts, judge
from pangu_bench.options import AnswerOptions
from pangu_bench.rows import GenerationRow, RowFile, VerdictRow
from pangu_training.asking.endpoint import Endpoint, file_stem
from pangu_training.evaluation.intervals import wilson
from pangu_training.evaluation.judging import policy_of, sandbox_configuration
from pangu_training.evaluation.pass_at_k import bootstrap_interval, by_program, mean_pass_at_k, pass_at_k
from pangu_training.evaluation.problem import Problem, Suite
from pangu_training.evaluation.styles import style_for
from pangu_training.evaluation.suites import read_suite
from pangu_training.sandbox.execution import Outcome, Policy

Answered = TypeVar("Answered", GenerationRow, VerdictRow)
REPORTED_K = (1, 10, 100)
WITHOUT_INFLUENCE = {"suite", "limit", "samples", "unsafe"}  # on a single row: more problems or samples go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an artifact is asked."""

    suite: Suite
    problems: tuple[Problem, ...]
    options: AnswerOptions
    policy: Policy

    def configuration(self, subject: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that shapes a row about `subject`, the artifact or the endpoint.

        Raises:
            SandboxError: programs cannot be confined here.
        """
        options = dataclasses.asdict(self.options)
        return {
            "subject": dict(subject),
            "suite": self.suite.name,
            "suite_sha256": self.suite.sha256,
            **{name: value for name, value in options.items() if name not in WITHOUT_INFLUENCE},
            "sandbox": sandbox_configuration(self.policy),
        }

    def file(self, folder: Path, name: str) -> Path:
        """Where the rows about the model `name` are."""
        return folder / f"{file_stem(name)}.{self.suite.name}.{self.options.style}.jsonl"

    def is_answered(self, rows: RowFile) -> bool:
        """Whether no answer is missing."""
        return next(missing(rows, self.problems, self.options), None) is None

    def answer(self, rows: RowFile, endpoint: Endpoint) -> None:
        """Append the answers that are missing."""
        answer(rows, self.problems, self.options, endpoint)

    def judge(self, rows: RowFile) -> None:
        """Append the verdicts that are missing."""
        if self.suite.runnable:
            judge(rows, self.problems, self.policy)

    def gold(self, folder: Path) -> dict[str, Any]:
        """How the suite's own solutions come out; kept in `folder`."""
        if not self.suite.runnable:
            return {}
        verdicts = gold_verdicts(folder, self.suite, self.problems, self.policy)
        failed = [task_id for task_id, verdict in verdicts.items() if not verdict.passed]
        return {"passed": len(verdicts) - len(failed), "problems": len(verdicts), "failed": failed}

    def pass_rates(self, rows: RowFile) -> dict[str, float]:
        """Each problem's share of samples that pass."""
        samples = self.options.samples
        return {task_id: passed / samples for task_id, passed in self._passed(rows).items()}

    def score(self, rows: RowFile, gold: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of the rows, as JSON output and manifest have them."""
        answers = self._of_this_run(rows.of(GenerationRow))
        samples = self.options.samples
        score: dict[str, Any] = {
            "suite": self.suite.name,
            "style": self.options.style,
            "samples": f"{len(self.problems)}x{samples}",
            "temperature": self.options.temperature,
            "concurrency": self.options.concurrency,
            "suite_sha256": self.suite.sha256,
            "measured_at": now(),
        }
        if not self.suite.runnable:
            return {**score, "no_score": self.suite.no_score, "warnings": []}
        verdicts = self._of_this_run(rows.of(VerdictRow))
        outcomes = Counter(str(verdict.outcome) for verdict in verdicts)
        passed = self._passed(rows)
        tasks = [(samples, solved) for solved in passed.values()]
        reported = [k for k in REPORTED_K if k <= samples]
        return {
            **score,
            "pass_at_k": {str(k): mean_pass_at_k(tasks, k) for k in reported},
            "intervals": {str(k): self._interval(passed, k) for k in reported},
            "outcomes": {str(outcome): outcomes[outcome] for outcome in Outcome if outcomes[outcome]},
            "gold": dict(gold),
            "sandbox": sandbox_configuration(self.policy)["tier"],
            "warnings": warnings(answers, gold),
        }

    def _interval(self, passed: Mapping[str, int], k: int) -> tuple[float, float]:
        """95 %: Wilson's where each program has one task, 0 or 1; else a bootstrap over programs."""
        values = {task: pass_at_k(self.options.samples, solved, k) for task, solved in passed.items()}
        programs = by_program(values)
        if len(programs) == len(values) and set(values.values()) <= {0, 1}:
            # a bootstrap of equal values has no width
            return wilson(round(sum(values.values())), len(values))
        return bootstrap_interval(programs)

    def _passed(self, rows: RowFile) -> dict[str, int]:
        passed = dict.fromkeys((problem.task_id for problem in self.problems), 0)
        for verdict in self._of_this_run(rows.of(VerdictRow)):
            passed[verdict.task_id] += verdict.passed
        return passed

    def _of_this_run(self, rows: Iterable[Answered]) -> list[Answered]:
        """Without those of more problems or samples that an earlier run had."""
        asked = {problem.task_id for problem in self.problems}
        return [row for row in rows if row.task_id in asked and row.sample < self.options.samples]


def evaluation_of(options: AnswerOptions) -> Evaluation:
    """What `options` say.

    Raises:
        SuiteError: no such suite, or the style does not fit it.
    """
    suite = read_suite(options.suite)
    problems = suite.problems[: options.limit]
    for problem in problems:
        style_for(problem, options.style).prompt(problem)  # an hour later would be late for an error
    return Evaluation(
        suite=suite, problems=problems, options=options, policy=policy_of(suite, unsafe=options.unsafe)
    )


def warnings(answers: Sequence[GenerationRow], gold: Mapping[str, Any]) -> list[str]:
    """What makes a score doubtful, in words."""
    found = []
    if not gold["problems"]:
        found.append(
            "no problem has a solution of its own: nothing shows that the tests let a right answer pass"
        )
    if gold["failed"]:
        found.append(
            f"gold solutions pass only {gold['passed']} of {gold['problems']}: the suite or the sandbox is at "
            f"fault for {', '.join(gold['failed'])}"
        )
    empty = sum(not row.answer.strip() for row in answers)
    if 2 * empty > len(answers):
        found.append(
            f"{empty} of {len(answers)} answers are empty: the style does not fit the model, or it is broken"
        )
    elif len(answers) > 2 and len({row.answer for row in answers}) == 1:
        found.append(f"all {len(answers)} answers are the same text: the model is broken")
    cut = sum(row.finish_reason == "length" for row in answers)
    if 2 * cut > len(answers):
        found.append(
            f"{cut} of {len(answers)} answers reached --max-tokens: the model does not end, or needs more"
        )
    return found


def in_words(score: Mapping[str, Any]) -> str:
    """A score in a few lines."""
    head = f"{score['suite']}, style {score['style']}, {score['samples']} (problems x samples)"
    if "no_score" in score:
        return f"{head}: no score, since {score['no_score']}"
    lines = [head]
    for k, value in score["pass_at_k"].items():
        low, high = score["intervals"][k]
        lines.append(f"  pass@{k} {value:.1%} (95 % interval {low:.1%} to {high:.1%})")
    gold = score["gold"]
    lines.append(f"  gold   {gold['passed']} of {gold['problems']} by the same sandbox: {score['sandbox']}")
    lines.append("  outcomes: " + ", ".join(f"{name} {count}" for name, count in score["outcomes"].items()))
    return "\n".join(lines + [f"  WARNING: {warning}" for warning in score["warnings"]])
