"""Which tasks of a benchmark a text repeats: runs of words that both have, and docstrings.

Texts are compared as words: runs of letters, digits and `_`, in lower case. A task's texts are its statement (the
docstring, or the words) and its right program, a training row's its prompt and its answers.

A shared run of `candidate_words` makes a row a candidate, one of `drop_words` drops it. So does a task's whole
docstring, up to its `>>>` examples, that a text contains (the rule of BigCode and Magicoder, who compare characters).
What more than `form_tasks` tasks have is their suite's form, like imports that all begin with: it is cut out of both.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from pangu_training.evaluation.problem import Problem, Suite, SuiteError
from pangu_training.evaluation.styles import text_and_code
from pangu_training.evaluation.suites import problem_of, read_suite
from pangu_training.evaluation.words import read_problems

LEAST_DOCSTRING_WORDS = 5  # shorter ones, like "Return the sum.", occur anywhere
CANDIDATE, RUN, DOCSTRING = "candidate", "run", "docstring"

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of runs, in words; and how many tasks may have a run that is their own."""

    candidate_words: int = 10
    drop_words: int = 13  # not below candidate_words
    form_tasks: int = 2


@dataclass(frozen=True, slots=True)
class Match:
    """What a text shares with a task, and the rule that found it: CANDIDATE, RUN or DOCSTRING."""

    rule: str
    task_id: str
    words: str


class Benchmark:
    """A suite, indexed by the runs of its tasks; `name` is for people."""

    def __init__(self, name: str, suite: Suite, lengths: Lengths) -> None:
        self.name, self.suite, self.lengths = name, suite, lengths
        # Infilling has a task for each line of a program: they are one here.
        tasks = {_texts(problem): problem.task_id for problem in reversed(suite.problems)}
        words = {task_id: [words_in(text) for text in texts] for texts, task_id in tasks.items()}
        counts = Counter(
            run
            for texts in words.values()
            for run in {run for text in texts for run in runs(text, lengths.candidate_words)}
        )
        self._form = {run for run, count in counts.items() if count > lengths.form_tasks}
        self._tasks_by_run: dict[Words, set[str]] = defaultdict(set)
        for task_id, texts in words.items():
            for part in self._own_parts(texts):
                for length in (lengths.candidate_words, lengths.drop_words):
                    for run in runs(part, length):
                        self._tasks_by_run[run].add(task_id)
        self._docstrings: dict[Words, list[tuple[str, str]]] = defaultdict(list)
        for (statement, _), task_id in tasks.items():
            docstring = words_in(statement.partition(">>>")[0])
            if len(docstring) >= LEAST_DOCSTRING_WORDS:
                start = tuple(docstring[:LEAST_DOCSTRING_WORDS])
                self._docstrings[start].append((task_id, _spaced(docstring)))

    def matches(self, texts: Iterable[str]) -> list[Match]:
        """What `texts` share with each task: of each rule the first find."""
        words = [words_in(text) for text in texts]
        found: dict[tuple[str, str], Match] = {}
        for match in (*self._shared_runs(words), *self._shared_docstrings(words)):
            found.setdefault((match.rule, match.task_id), match)
        return list(found.values())

    def _shared_runs(self, texts: Sequence[Sequence[str]]) -> Iterator[Match]:
        for part in self._own_parts(texts):
            for rule, length in ((CANDIDATE, self.lengths.candidate_words), (RUN, self.lengths.drop_words)):
                matches = [
                    Match(rule, task_id, " ".join(run))
                    for run in runs(part, length)
                    for task_id in sorted(self._tasks_by_run.get(run, ()))
                ]
                if not matches:
                    break  # what shares no short run shares no long one
                yield from matches

    def _shared_docstrings(self, texts: Sequence[Sequence[str]]) -> Iterator[Match]:
        for words in texts:
            spaced = _spaced(words)
            for start in runs(words, LEAST_DOCSTRING_WORDS):
                for task_id, docstring in self._docstrings.get(start, ()):
                    if docstring in spaced:
                        yield Match(DOCSTRING, task_id, docstring.strip())

    def _own_parts(self, texts: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
        """`texts` without the suite's form."""
        for words in texts:
            yield from _parts(words, self._form, self.lengths.candidate_words)


def read_benchmark(text: str, lengths: Lengths) -> Benchmark:
    """The suite that `text` stands for, as `read_suite` has it; of problems in words also those without tests.

    Raises:
        SuiteError, DataError: there is no such suite, or its file is malformed.
    """
    form, colon, path = text.partition(":")
    name = f"{form}{colon}{Path(path).name}"
    if form != "problems" or not path:
        return Benchmark(name, read_suite(text), lengths)
    file = read_problems(Path(path))
    problems = tuple(problem_of(row) for row in file.rows)
    return Benchmark(name, Suite(name=form, problems=problems, sha256=file.sha256), lengths)


def words_in(text: str) -> list[str]:
    """The words that are compared."""
    return re.findall(r"\w+", text.lower())


def runs(words: Sequence[str], length: int) -> Iterator[Words]:
    """All runs of `length` words."""
    return (tuple(words[at : at + length]) for at in range(len(words) - length + 1))


def _texts(problem: Problem) -> tuple[str, str]:
    """A task's statement, and its program without what is there already."""
    program = problem.canonical_program.removeprefix(problem.setup)
    if problem.words is not None:
        return problem.words, program
    for source in (problem.prompt, problem.canonical_program):  # a prompt that ends at a hole may not parse
        try:
            return text_and_code(replace(problem, prompt=source))[0], program or source
        except SuiteError:
            continue
    return "", program or problem.prompt


def _parts(words: Sequence[str], form: Set[Words], length: int) -> Iterator[Sequence[str]]:
    """What lies between the runs of `form`."""
    start = 0
    for at, run in enumerate(runs(words, length)):
        if run in form:
            if start < at:
                yield words[start:at]
            start = at + length
    yield words[start:]


def _spaced(words: Iterable[str]) -> str:
    return f" {' '.join(words)} "
