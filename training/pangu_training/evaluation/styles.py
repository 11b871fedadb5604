"""Prompt styles: what a model is shown of a problem, and how its answer becomes a program.

    completion   the problem's own prompt, signature then docstring, not stripped (StarCoder's and any base model's)
    pangu        PanGu-Coder2's: the docstring first, then imports, helpers and signature
    wizardcoder  an Alpaca instruction, as WizardCoder's `humaneval_gen.py` builds it: four spaces become a tab
    chat         a message for the model's own chat template
    infilling    prompt and suffix around a hole

A problem that is stated in words (`Problem.words`) is asked in pangu, wizardcoder or chat; the answer is the program.

The paper does not say where PanGu-Coder2's prompt has imports and helper functions. Here they come after the
docstring: in its training rows the answer is everything after the docstring.
"""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from pangu_training.evaluation.extraction import (
    COMPLETION_STOPS,
    INFILLING_STOPS,
    answer_program,
    completion_program,
    infilling_program,
    parse,
)
from pangu_training.evaluation.problem import Problem, SuiteError
from pangu_training.evaluation.prompt import format_prompt

WIZARDCODER_PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n\n"
    "### Instruction:\nCreate a Python script for this problem:\n{problem}\n\n### Response:"
)
CHAT_PROMPT = (
    "Complete this Python code. Answer with the whole code in one Markdown code block.\n\n"
    "```python\n{problem}\n```"
)
CHAT_WORDS_PROMPT = "{problem}\n\nAnswer with the whole Python code in one Markdown code block."
TAB = "    "


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is sent: `text` (with `suffix`) to the completion endpoint, or `messages` to the chat endpoint.

    `stop` are the strings where generating may end: the program is the same without them.
    """

    text: str | None = None
    suffix: str | None = None
    messages: tuple[dict[str, str], ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Style:
    """A style's two pure functions."""

    prompt: Callable[[Problem], Prompt]
    program: Callable[[Problem, str], str]


def completion_prompt(problem: Problem) -> Prompt:
    """The problem's own prompt."""
    return Prompt(text=problem.prompt, stop=COMPLETION_STOPS)


def pangu_prompt(problem: Problem) -> Prompt:
    """The prompt with its docstring moved to the front, or the words as one."""
    if problem.words is not None:
        return Prompt(text=format_prompt(problem.words))
    return Prompt(text=docstring_first(problem), stop=COMPLETION_STOPS)


def wizardcoder_prompt(problem: Problem) -> Prompt:
    """The prompt in an instruction."""
    return Prompt(text=WIZARDCODER_PROMPT.format(problem=_statement(problem).replace(TAB, "\t")))


def chat_prompt(problem: Problem) -> Prompt:
    """The prompt in a message; no system message, so that the template's own applies."""
    form = CHAT_PROMPT if problem.words is None else CHAT_WORDS_PROMPT
    content = form.format(problem=_statement(problem).rstrip("\n"))
    return Prompt(messages=({"role": "user", "content": content},))


def infilling_prompt(problem: Problem) -> Prompt:
    """Prompt and suffix; the server puts the model's FIM tokens around them."""
    return Prompt(text=problem.prompt, suffix=problem.suffix, stop=INFILLING_STOPS)


def pangu_program(problem: Problem, answer: str) -> str:
    """The program that `answer` makes of `pangu_prompt`."""
    if problem.words is not None:
        return answer_program(problem, answer)
    return completion_program(problem, docstring_first(problem), answer)


STYLES = {
    "completion": Style(completion_prompt, lambda p, answer: completion_program(p, p.prompt, answer)),
    "pangu": Style(pangu_prompt, pangu_program),
    "wizardcoder": Style(wizardcoder_prompt, lambda p, answer: answer_program(p, answer.replace("\t", TAB))),
    "chat": Style(chat_prompt, answer_program),
    "infilling": Style(infilling_prompt, infilling_program),
}


def style_for(problem: Problem, name: str) -> Style:
    """The style `name`; `SuiteError` when there is none, or it does not fit `problem`."""
    if name not in STYLES:
        raise SuiteError(f"{name!r} is not a prompt style: choose one of {', '.join(STYLES)}")
    if (name == "infilling") != (problem.suffix is not None):
        fitting = "infilling" if problem.suffix is not None else ", ".join(set(STYLES) - {"infilling"})
        raise SuiteError(f"{problem.suite} cannot be asked in the style {name!r}: choose {fitting}")
    if name == "completion" and problem.words is not None:
        raise SuiteError(
            f"{problem.suite} states problems in words, which no code completes: choose another style"
        )
    return STYLES[name]


def docstring_first(problem: Problem) -> str:
    """The problem's text in a docstring of its own, then the code of its prompt without it.

    Raises:
        SuiteError: the prompt does not end with a function that has a docstring.
    """
    text, code = text_and_code(problem)
    return f"{format_prompt(text)}{code}\n"


def text_and_code(problem: Problem) -> tuple[str, str]:
    """The docstring of the prompt's last function, and the prompt's code without it.

    Raises:
        SuiteError: see `docstring_first`.
    """
    tree = parse(problem.prompt)
    # HumanEval/115 has an import before its docstring
    docstrings = [
        statement
        for node in ast.walk(tree or ast.Module([], []))
        if isinstance(node, ast.FunctionDef)
        for statement in node.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    ]
    if not docstrings:
        raise SuiteError(f"{problem.task_id} has no docstring to put first: choose another prompt style")
    docstring = max(docstrings, key=lambda node: node.lineno)
    literal = ast.get_source_segment(problem.prompt, docstring) or ""
    # As it is written, not as it is evaluated: an escape in an example stays one.
    text = re.sub(r"^[rRuU]?(\"\"\"|'''|\"|')(.*)\1$", r"\2", literal, flags=re.DOTALL)
    lines = problem.prompt.split("\n")
    code = "\n".join(lines[: docstring.lineno - 1] + lines[docstring.end_lineno :]).strip("\n")
    return inspect.cleandoc(text), code


def _statement(problem: Problem) -> str:
    return problem.prompt if problem.words is None else problem.words
