"""An answer becomes the program its writer meant, and no text whatever stops the run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import BODY, HOLE, METHOD, PROBLEM, PROMPT, solves

from pangu_training.evaluation.extraction import (
    COMPLETION_STOPS,
    answer_program,
    code_of,
    completion_program,
    infilling_program,
    parse,
    runnable,
)
from pangu_training.evaluation.problem import CheckTests, Problem

FUNCTION = f"def root_sum(numbers, offset):\n{BODY}"
WITH_ZERO = FUNCTION.replace("+ offset", "+ offset + ZERO")
WITH_ZEROS = FUNCTION.replace("+ offset", "+ offset + zeros[2]")
PIECES = [
    *("```python\n", "```\n", "~~~~\n", "``` python copy\n", "````\n", "```x```\n", "\r\n", "\t", " ", "\n"),
    *(
        "def root_sum(",
        "numbers, offset):\n",
        BODY,
        "class Solution:\n",
        "root_sum = 1\n",
        "from __future__ import x\n",
    ),
    *(
        '"""',
        "'''",
        "\\",
        "\0",
        "\ud800",
        "é",
        "(" * 300,
        "import os, \n",
        "@x\n",
        "assert 0\n",
        "if __name__:\n",
    ),
]
ANY_TEXT = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@settings(deadline=None)
@given(ANY_TEXT)
def test_any_text_makes_a_program(text: str) -> None:
    for problem in (PROBLEM, METHOD):
        assert isinstance(answer_program(problem, text), str)
        assert completion_program(problem, problem.prompt, text).startswith(problem.prompt)
    assert infilling_program(HOLE, text).startswith(HOLE.prompt)


@settings(deadline=None)
@given(ANY_TEXT)
def test_stopping_the_generation_changes_no_program(text: str) -> None:
    """The server cuts before the first stop string; the program must be the same where it does not."""
    text = text.replace("\r", "")
    cut = text[: min((text.find(stop) for stop in COMPLETION_STOPS if stop in text), default=len(text))]
    assert completion_program(PROBLEM, PROMPT, cut) == completion_program(PROBLEM, PROMPT, text)
    assert infilling_program(HOLE, text.split("\n")[0]) == infilling_program(HOLE, text)


@pytest.mark.parametrize(
    "rest",
    [
        "\ndef other(:\n",
        "\nclass Other(:\n",
        "\n# and then?\nbroken(\n",
        "\nif __name__ == '__main__':\n    broken(\n",
        "\nprint(root_sum(\n",
        "\n@broken(\n",
        "\n```\nThat is it.",
    ],
)
def test_a_completion_ends_with_the_function(rest: str) -> None:
    assert completion_program(PROBLEM, PROMPT, BODY + rest) == PROMPT + BODY + "\n"


def test_a_completion_keeps_indented_comments_and_functions() -> None:
    body = f"    # how\n    def inner(x):\n        return sqrt(x)\n\n{BODY}"
    assert body in completion_program(PROBLEM, PROMPT, body)


def test_a_hole_takes_one_line() -> None:
    assert infilling_program(HOLE, "    y = 2 * x\n    return None\n") == HOLE.canonical_program
    assert infilling_program(HOLE, "    y = 2 * x") == HOLE.canonical_program


WORKING_ANSWERS = {
    "fenced": f"```python\n{FUNCTION}```",
    "no language": f"```\n{FUNCTION}```",
    "another spelling": f"```Python3 title\n{FUNCTION}```",
    "tildes": f"~~~py\n{FUNCTION}~~~",
    "longer fence": f"````python\n{FUNCTION}````",
    "windows lines": f"Sure:\n```python\n{FUNCTION}```\n".replace("\n", "\r\n"),
    "prose around": f"Sure! Here's how:\n\n```python\n{FUNCTION}```\n\nIt isn't hard.",
    "closing fence missing": f"Sure:\n```python\n{FUNCTION}",
    "opening fence in the prompt": f"{FUNCTION}```\nThis doesn't need more.",
    "indented in a list": "1. First\n"
    + "".join(f"   {line}\n" for line in f"```python\n{FUNCTION}```".split("\n")),
    "shell before": f"```bash\npip install it\n```\n```python\n{FUNCTION}```",
    "examples after": f"```python\n{FUNCTION}```\nUse it:\n```python\nprint(root_sum([1], broken))\n```",
    "not closed before the next": f"```python\n{FUNCTION}\n```python\nroot_sum(broken)\n```",
    "inline code before": f"Use ```sqrt``` and `sum`.\n```python\n{FUNCTION}```",
    "no fence": FUNCTION,
    "no fence, prose around": f"Here's the function:\n\n{FUNCTION}\nIt doesn't need more.\n",
    "own wrong assert": f"```python\n{FUNCTION}\nassert root_sum([4], 0) == 3\n```",
    "own example that raises": f"```python\n{FUNCTION}\nresult = root_sum(None, 0)\nprint(result)\n```",
    "reads input": f"```python\n{FUNCTION}\nif __name__ == '__main__':\n    print(root_sum([int(input())], 0))\n```",
    "constant it needs": f"```python\nA = 1\nZERO: int = A - 1\n{WITH_ZERO}```",
    "constant after it": f"```python\n{WITH_ZERO}\nA = 1\nZERO = A - 1\n```",
    "table filled in a loop": "```python\nzeros = []\nfor _ in range(3):\n    zeros.append(0)\n\n"
    f"{WITH_ZEROS}```",
    "another name": f"```python\n{FUNCTION.replace('root_sum', 'solution')}\nroot_sum = solution\n```",
    "decorated": f"```python\nfrom functools import wraps\n\n@(\n    lambda f: f\n)\n{FUNCTION}```",
    "two on a line": f"```python\n{WITH_ZERO}\nprint(1); ZERO = 0\n```",
    "from the future": f"```python\n'''Doc.'''\nfrom __future__ import annotations\n{FUNCTION}```",
    "body only": f"```python\n{BODY}```",
    "body only, not indented": f"```python\n{BODY.lstrip()}```",
    "body only, no fence": BODY,
    "invalid escape": f"```python\npattern = '\\d'\n{FUNCTION}```",
}


@pytest.mark.parametrize("answer", WORKING_ANSWERS.values(), ids=WORKING_ANSWERS.keys())
@pytest.mark.filterwarnings("ignore:invalid escape", "ignore:.*invalid escape")
def test_a_right_function_is_found(answer: str) -> None:
    assert solves(PROBLEM, answer_program(PROBLEM, answer))


def test_the_prompts_imports_and_helpers_are_there_when_only_the_function_is_restated() -> None:
    program = answer_program(PROBLEM, f"```python\n{FUNCTION.replace('+ offset', '+ halve(2 * offset)')}```")
    assert solves(PROBLEM, program)


def test_a_method_is_found_in_its_class_or_as_its_body() -> None:
    restated = (
        "```python\nclass Solution:\n    def triple(self, x: List[int]) -> int:\n        return 3 * x[0]\n```"
    )
    assert solves(METHOD, answer_program(METHOD, restated))
    assert solves(METHOD, answer_program(METHOD, "```python\nreturn 3 * x[0]\n```"))


@pytest.mark.parametrize(
    "code", ["def root_sum(numbers, offset:\n    return 0", "def root_sum(numbers, offset):\n    return ("]
)
def test_code_that_does_not_parse_goes_on_as_it_is(code: str) -> None:
    program = answer_program(PROBLEM, f"```python\n{code}\n```")
    assert code in program
    assert parse(program) is None


def test_no_part_of_a_broken_function_is_rescued() -> None:
    """An answer cut off by the token limit is a syntax failure, also without a fence."""
    program = answer_program(
        PROBLEM, "def root_sum(numbers, offset):\n    if not numbers:\n        return offset\n    return ("
    )
    assert parse(program) is None


@pytest.mark.parametrize("answer", ["", "I cannot help with that.", "```python\n```"])
def test_an_answer_without_code_fails(answer: str) -> None:
    assert not solves(PROBLEM, answer_program(PROBLEM, answer))


def test_the_first_block_that_defines_it_counts() -> None:
    wrong = FUNCTION.replace("+ offset", "- offset")
    assert code_of(PROBLEM, f"```python\n{wrong}```\nBetter:\n```python\n{FUNCTION}```") == wrong.rstrip("\n")


WORDS = Problem(
    suite="problems",
    task_id="words",
    prompt="",
    words="Write double(x).",
    entry_point="double",
    canonical_program="",
    tests=CheckTests(source="def check(candidate):\n    assert candidate(2) == TWO * 2\n"),
    setup="TWO = 2",
)


@pytest.mark.parametrize("code", ["def twice(x):\n    return 2 * x", "print(int(input()) * 2)"])
def test_code_that_defines_something_else_stays_as_it_is_where_the_problem_is_in_words(code: str) -> None:
    """It compiles, and fails because the function is not there."""
    assert answer_program(WORDS, f"So:\n```python\n{code}\n```") == f"{code}\n"


def test_a_program_is_written_without_the_setup_and_runs_behind_it() -> None:
    code = '"Doc."\nfrom __future__ import annotations\n\n\ndef double(x: Never):\n    return TWO * x\n'
    program = answer_program(WORDS, f"```python\n{code}```")
    assert program == code
    assert "TWO = 2\n" in runnable(WORDS, program)
    assert solves(WORDS, program)
    assert solves(WORDS, "def double(x):\n    return TWO * x\n")
