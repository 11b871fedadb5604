"""Each rule takes what it is for, and leaves what only looks like it."""

from typing import Any

import pytest

from pangu_training.data.filters import RULES, Filter
from pangu_training.evaluation.words import ProblemRow, RecordedAnswer

ADD = "Write a function add(a, b) that gives the sum of two numbers."
PROGRAM = "def add(a, b):\n    return a + b\n"


def row(prompt: str, *answers: str, **fields: Any) -> ProblemRow:
    recorded = tuple(RecordedAnswer(text=text, source="me") for text in answers)
    return ProblemRow(id="1", prompt=prompt, answers=recorded, fields=fields)


def rule_of(problem: ProblemRow, **limits: Any) -> str:
    rejection = Filter(**limits).rejection(problem)
    return rejection.rule if rejection else ""


@pytest.mark.parametrize(
    ("problem", "limits", "rule"),
    [
        (row("Add two numbers"), {}, "too-short"),
        (row("- ... - ... -"), {}, "too-short"),
        (row("Add two numbers please"), {}, ""),
        (row("Add two numbers please"), {"min_words": 5}, "too-short"),
        (row(": " + ADD), {}, "first-character"),
        (row("\n" + ADD), {}, ""),
        (row("Écrivez une fonction pour additionner"), {}, ""),
        (row("`add(a, b)` must give the sum. Write it."), {}, ""),
        (row(f"#Rewritten  Task#:\n{ADD}"), {}, "label"),
        (row(f"{ADD} It is harder than the given\ntask."), {}, "label"),
        (row("Return the least time for all given tasks."), {}, ""),
        (row(f"Problem: {ADD}"), {"labels": ("problem:",)}, ""),  # no word ends behind a colon
        (row(f"New problem: {ADD}"), {"labels": ("new problem",)}, "label"),
        (row("Sorry, but I cannot write that task."), {}, "refusal"),
        (row("Print 'sorry' for numbers below zero. " + 80 * "x "), {}, ""),
        (row("Print 'sorry' for numbers below zero."), {"refusal_words": 6}, ""),
        (row(ADD + 4000 * "x"), {}, "too-long"),
        (row(ADD, 8000 * "x"), {}, "too-long"),
        (row(ADD, 8000 * "x", PROGRAM), {}, ""),
        (row(ADD, PROGRAM), {"max_characters": 80}, "too-long"),
        (row(ADD.replace(" ", "\n"), parent="0"), {"prompts": {"0": ADD}}, "unchanged"),
        (row(ADD, parent="0"), {"prompts": {"0": f"{ADD} Quickly."}}, ""),
        (row(ADD, parent="elsewhere"), {}, ""),
        (row(f"Explain this:\n```\n{PROGRAM}```", PROGRAM), {}, "copied-answer"),
        (row(ADD, PROGRAM), {}, ""),
        (row(ADD, ""), {}, ""),
        (row("Design a schema for a shop's database."), {}, ""),
        (row("Design a schema for a shop's database."), {"function_level": True}, "no-function"),
        (row(ADD), {"function_level": True}, ""),
    ],
)
def test_the_first_rule_that_a_row_breaks(problem: ProblemRow, limits: dict[str, Any], rule: str) -> None:
    assert rule_of(problem, **limits) == rule


def test_a_reason_says_what_broke_the_rule() -> None:
    rejection = Filter().rejection(row("Add numbers"))
    assert rejection is not None
    assert (rejection.rule, rejection.reason) == ("too-short", "2 words")


def test_every_rule_says_whose_it_is() -> None:
    assert all(rule.__doc__ for rule in RULES.values())
