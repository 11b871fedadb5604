"""What models are asked to write problems and tests with, in our own words.

The evolution follows section 3.3 and figure 2 of PanGu-Coder2: the role of a contest designer, a task that gets a bit
harder by a method, and rules for the answer. The paper does not list its methods; the five are those of WizardCoder
(arXiv 2306.08568), which asks for `complexity` "not often": a model that sees one task cannot know how often, so the
draw does.
"""

import random

METHODS = {
    "constraints": "add a constraint or a requirement, in about ten more words",
    "rarer requirement": "replace a requirement that is common by one that is rarer and more specific",
    "reasoning": "where a few steps of thought solve it, let the solution need more of them",
    "misleading code": "after its words, show a short piece of code as a reference that misleads: it has a mistake",
    "complexity": "ask for less time or less memory, as a complexity in big O",
}
WEIGHTS = {name: 1 if name == "complexity" else 2 for name in METHODS}

# What may not occur in a new task: the labels of the paper's template, which `EVOLUTION` does without as small models
# repeat them, and its own name for the given task.
LABELS = ("#given task#", "#rewritten task#", "given task", "rewritten task", "task above")

EVOLUTION = """\
You design problems for programming contests. Here is a task:

{task}

---

Turn it into a new task that is a bit harder. Do so by this method, or by another that suits it better: {method}.

The new task
- makes sense, is understood by people, and can be solved by code;
- stands alone: its readers do not know the task above and need not;
- still has the tables, code and input of the task above, if there are any;
- is about as long as the task above;
- asks for one function, and says what goes in and what comes out.

Answer with the words of the new task only. Do not solve it, do not explain it, and give it no heading."""

# No example of an assert: small models test the example's function, and write programs for its name.
TESTS = """\
You write tests for programming tasks. You do not solve the tasks. Here is a task:

{task}

---

Write {count} lines of Python that test a function which solves this task. Each has this form, with values written out:

assert function_name(arguments) == result

Take usual cases and edge cases, and work out each result with care. The function has the name that the task gives it; \
if it gives none, choose one that suits the task. Do not define the function. Answer with the {count} lines only."""
NAMED = "{task}\n\nName the function `{name}`."


def method_for(seed: int, problem: str, round_number: int) -> str:
    """The method's name for a problem in a round, always the same for the same three."""
    draw = random.Random(f"{seed}/{problem}/{round_number}")
    return draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]


def evolution(task: str, method: str) -> str:
    """The message that asks for a harder task."""
    return EVOLUTION.format(method=METHODS[method], task=task)


def tests(task: str, count: int) -> str:
    """The message that asks for asserts."""
    return TESTS.format(task=task, count=count)


def named(task: str, name: str) -> str:
    """A task that gives the function a name."""
    return NAMED.format(task=task, name=name)
