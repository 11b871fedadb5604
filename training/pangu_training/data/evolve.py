"""`pangu-train evolve`: problems made harder, round by round, by a model behind an OpenAI-style endpoint.

In-depth evolution after Code Evol-Instruct. An evolved problem is another problem: it has no tests and no answers
(`pangu-train tests`). Answers are kept in a journal next to --output: the same command asks only what is missing.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_training.asking.options import AskingOptions, GenerationOptions
from pangu_training.asking.questions import Chat, Choice, Reply, cost_words, costs, journal_for, sibling
from pangu_training.data.instructions import LABELS, evolution, method_for
from pangu_training.evaluation.words import ProblemRow, read_problems, write_problems
from pangu_training.stage.errors import DataError
from pangu_training.stage.options import argument, counted, nested, option

LEAST_WORDS = 4
REFUSAL = re.compile(
    r"\b(i['’]m sorry|i am sorry|sorry,|i can['’]?t|i cannot|i['’]m unable|i am unable|as an ai)\b"
)
REFUSAL_WORDS = 80  # a longer answer that is sorry is a task about it
PREAMBLE = re.compile(r"\W*(sure|certainly|of course|here['’]s|here is)\b")
FENCED = re.compile(r"```.*?(```|\Z)", re.DOTALL)
DEFINITION = re.compile(r"^ *def \w+\(.*:\n", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of a round: evolved problems by the id of their original, replies, and what was not taken."""

    children: dict[str, ProblemRow]
    replies: list[Reply]
    rejected: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolveOptions:
    """What to evolve, how often, and by which server."""

    problems: Path = argument("problems.jsonl")
    output: Path = option("problems.jsonl to write", metavar="FILE", writes="results")
    rounds: int = counted("each evolves what the one before gave; WizardCoder found 3 best", 1, metavar=None)
    evolved_only: bool = option("leave the originals out of --output", False)
    tries: int = counted("answers asked for until one is taken", 3, metavar=None)
    generation: GenerationOptions = nested(GenerationOptions, temperature=1.0, max_tokens=2048)
    asking: AskingOptions = nested(AskingOptions)


def evolve(options: EvolveOptions) -> None:
    """Evolve round by round, write the file, report."""
    from pangu_training.asking.endpoint import running

    originals = read_problems(options.problems).rows
    _require_free_ids(originals, options.rounds)
    rejected_file = sibling(options.output, "rejected")
    rounds: list[Round] = []
    with journal_for("evolve", options.output, rejected_file) as journal:
        asking = options.asking
        chat = Chat(running(asking.base_url, asking.model), journal, asking, options.generation)
        parents = {row.id: row for row in originals}
        for number in range(1, options.rounds + 1):
            rounds.append(evolved(parents, number, chat, tries=options.tries))
            parents = rounds[-1].children
        children = [child.fields for round in rounds for child in round.children.values()]
        write_problems(rejected_file, [row for round in rounds for row in round.rejected])
        kept = [] if options.evolved_only else [row.fields for row in originals]
        write_problems(options.output, [*kept, *children])
    _report(len(originals), rounds, options)


def evolved(parents: dict[str, ProblemRow], number: int, chat: Chat, *, tries: int) -> Round:
    """Round `number` over `parents`, which go by the id of their original."""
    children: dict[str, ProblemRow] = {}
    replies: list[Reply] = []
    rejected: list[dict[str, Any]] = []
    waiting = dict(parents)
    methods = {origin: method_for(chat.generation.seed or 0, origin, number) for origin in parents}
    for attempt in range(1, tries + 1):
        messages = [
            (
                evolution(parent.prompt, methods[origin]),
                (origin, f"round {number}", methods[origin], f"try {attempt}"),
            )
            for origin, parent in waiting.items()
        ]
        answered = chat.ask(messages, f"round {number}, try {attempt}")
        replies += answered
        for (origin, parent), reply in zip(list(waiting.items()), answered, strict=True):
            made = {
                "parent": parent.id,
                "round": number,
                "method": methods[origin],
                "model": chat.endpoint.model,
            }
            text = reply.choices[0].text.strip() if reply.choices else reply.refused
            if reason := fault(reply, parent.prompt, methods[origin]):
                rejected.append({**made, "try": attempt, "reason": reason, "text": text})
            else:
                name = f"{origin}+{number}"
                fields = {"id": name, "prompt": text, **made}
                children[origin] = ProblemRow(id=name, prompt=text, fields=fields)
            if not reason or reply.refused:  # what a server refuses once it refuses again
                del waiting[origin]
    ordered = {origin: children[origin] for origin in parents if origin in children}
    return Round(children=ordered, replies=replies, rejected=rejected)


def fault(reply: Reply, parent: str, method: str) -> str:
    """Why a reply is not a harder task than `parent`, as far as its look tells; empty when it may be one."""
    if reply.refused:
        return "refused by the server"
    choice = reply.choices[0] if reply.choices else Choice(text="", finish_reason="")
    text, lower = choice.text, choice.text.lower()
    words = len(text.split())
    if choice.finish_reason == "length":
        return "cut off"
    if len(FENCED.sub("", text).split()) < LEAST_WORDS:
        return "no words"
    if any(label in lower for label in LABELS):
        return "label"
    if PREAMBLE.match(lower):
        return "preamble"
    if words < REFUSAL_WORDS and REFUSAL.search(lower):
        return "refused by the model"
    if method != "misleading code" and DEFINITION.search(text) and not DEFINITION.search(parent):
        return "solution"
    return "copy" if _bare(text) == _bare(parent) else ""


def _bare(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _require_free_ids(rows: Sequence[ProblemRow], rounds: int) -> None:
    names = {row.id for row in rows}
    for row in rows:
        for number in range(1, rounds + 1):
            if f"{row.id}+{number}" in names:
                raise DataError(
                    f"{row.id!r} is evolved already, as {row.id}+{number}: give the file of the originals and "
                    "more --rounds"
                )


def _report(originals: int, rounds: Sequence[Round], options: EvolveOptions) -> None:
    figures = []
    for number, outcome in enumerate(rounds, start=1):
        asked = originals if number == 1 else len(rounds[number - 2].children)
        reasons = Counter(row["reason"] for row in outcome.rejected)
        spent = costs(outcome.replies, options.asking)
        figures.append(
            {
                "round": number,
                "problems": asked,
                "evolved": len(outcome.children),
                "stopped": asked - len(outcome.children),
                "not_taken": dict(reasons.most_common()),
                "methods": Counter(child.fields["method"] for child in outcome.children.values()),
                **spent,
            }
        )
        words = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"
        print(
            f"round {number}: {len(outcome.children)} of {asked} problems evolved; answers not taken: {words}; "
            f"{cost_words(spent)}"
        )
    total = costs([reply for outcome in rounds for reply in outcome.replies], options.asking)
    evolved = sum(len(outcome.children) for outcome in rounds)
    print(
        f"{options.output}: {0 if options.evolved_only else originals} originals, {evolved} evolved; "
        f"{cost_words(total)}"
    )
    result = {"output": str(options.output), "originals": originals, "evolved": evolved}
    print(json.dumps({**result, "rounds": figures, "costs": total}))
