"""Rules for a problem in words that is to be trained on; the first one that it breaks is the reason it goes.

The paper names "several manually-defined rules" (section 3.3) and none of them. These are the public ones of its
relatives: evol-teacher (an open Code Evol-Instruct), WizardLM, Magicoder; each rule's docstring says whose. Tokens are
counted as characters, four to a token, since which tokenizer will train is not known here. Standard library only.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pangu_training.evaluation.words import ProblemRow

LABELS = ("given task", "rewritten task", "given prompt", "rewritten prompt")
OPENERS = "`'\"([{<*#"  # code, a quotation or Markdown may begin a problem
APOLOGY = re.compile(r"\b(sorry|as an ai)\b")
FUNCTION = re.compile(r"\b(functions?|methods?|class|def|subroutine|procedure)\b")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a row goes: the rule's name, and what broke it."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The rules with their limits. Each rule gives its reason, or nothing where a row keeps it."""

    min_words: int = 4
    max_prompt_characters: int = 4000
    max_characters: int = 8000
    refusal_words: int = 80
    labels: tuple[str, ...] = LABELS
    function_level: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)  # by id: where the parents may be

    def rejection(self, row: ProblemRow) -> Rejection | None:
        """The first rule that `row` breaks."""
        reasons = ((name, rule(self, row)) for name, rule in RULES.items())
        return next((Rejection(name, reason) for name, reason in reasons if reason), None)

    def too_short(self, row: ProblemRow) -> str:
        """evol-teacher drops 3 words and less; WizardLM what is only punctuation, which has no words at all."""
        count = len(re.findall(r"\w+", row.prompt))
        return f"{count} words" if count < self.min_words else ""

    def first_character(self, row: ProblemRow) -> str:
        """evol-teacher drops what begins outside ASCII. Here it is a letter or digit of any script, or an opener."""
        first = row.prompt.lstrip()[0]
        return "" if first.isalnum() or first in OPENERS else f"begins with {first!r}"

    def label(self, row: ProblemRow) -> str:
        """The paper's figure 2 and WizardLM: labels of the evolution's prompt may not be in its result."""
        text = _one_line(row.prompt)
        found = (re.search(rf"\b{re.escape(label)}\b", text, re.IGNORECASE) for label in self.labels)
        return next((f"contains {match[0]!r}" for match in found if match), "")

    def refusal(self, row: ProblemRow) -> str:
        """WizardLM drops short texts that are sorry; a longer one is a problem about it."""
        text = row.prompt.lower()
        found = APOLOGY.search(text)
        return f"says {found[0]!r}" if found and len(text.split()) < self.refusal_words else ""

    def too_long(self, row: ProblemRow) -> str:
        """evol-teacher drops from 1000 tokens on, with the answer 2000. Of several answers one must fit."""
        length = len(row.prompt)
        if length > self.max_prompt_characters:
            return f"the prompt has {length} characters"
        length += min((len(answer.text) for answer in row.answers), default=0)
        return f"prompt and answer have {length} characters" if length > self.max_characters else ""

    def unchanged(self, row: ProblemRow) -> str:
        """Magicoder drops what equals its seed but for white space; `parent` has the seed's id."""
        parent = row.fields.get("parent")
        same = isinstance(parent, str) and _one_line(row.prompt) == _one_line(self.prompts.get(parent, ""))
        return f"the same as its parent {parent}" if same else ""

    def copied_answer(self, row: ProblemRow) -> str:
        """Magicoder drops solutions that their problem contains: there is nothing to solve."""
        prompt = _one_line(row.prompt)
        copied = any(answer.text.strip() and _one_line(answer.text) in prompt for answer in row.answers)
        return "the prompt contains an answer" if copied else ""

    def no_function(self, row: ProblemRow) -> str:
        """The paper's figure 2 asks for a function. Only with `function_level`: many seeds do not say the word."""
        asked = row.entry_point or FUNCTION.search(row.prompt.lower())
        return "asks for no function" if self.function_level and not asked else ""


RULES: Mapping[str, Callable[[Filter, ProblemRow], str]] = {
    "too-short": Filter.too_short,
    "first-character": Filter.first_character,
    "label": Filter.label,
    "refusal": Filter.refusal,
    "too-long": Filter.too_long,
    "unchanged": Filter.unchanged,
    "copied-answer": Filter.copied_answer,
    "no-function": Filter.no_function,
}


def _one_line(text: str) -> str:
    return " ".join(text.split())
