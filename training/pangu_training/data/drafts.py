"""Drafts of tests: a model's asserts for a problem, its programs, and what the sandbox says of one by the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pangu_training.asking.questions import Chat, Reply
from pangu_training.data.agreement import (
    Consensus,
    asserts_in,
    check_source,
    consensus,
    entry_point,
    function_under_test,
    names_in,
    of_candidate,
)
from pangu_training.data.instructions import named, tests
from pangu_training.evaluation.judging import judge, sandbox_configuration
from pangu_training.evaluation.problem import CheckTests, Problem
from pangu_training.evaluation.styles import STYLES
from pangu_training.evaluation.words import ProblemRow
from pangu_training.sandbox.execution import Outcome, Policy
from pangu_training.stage.line_file import Journal, key_of

CHAT_STYLE = STYLES["chat"]
NOTHING = Consensus((), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A problem whose words name its function, asserts about `candidate`, programs, and what these agree on."""

    problem: Problem
    asserts: tuple[str, ...]
    programs: tuple[str, ...] = ()
    consensus: Consensus = NOTHING

    def kept(self) -> list[str]:
        """The asserts that are agreed on."""
        return [self.asserts[at] for at in self.consensus.asserts]

    def reason(self, least_tests: int, least_agreeing: int) -> str:
        """Why the problem gets no tests; empty when it does."""
        if len(self.asserts) < least_tests:
            return "too few asserts"
        if len(self.consensus.programs) < least_agreeing:
            return "too few programs agree"
        return "too few asserts agreed on" if len(self.consensus.asserts) < least_tests else ""


def with_asserts(
    rows: Sequence[ProblemRow], chat: Chat, answers: int, count: int
) -> tuple[list[Draft], list[Reply]]:
    """A draft of each problem with the asserts of its answers, `count` of each at most; and the replies."""
    replies = chat.ask(
        [(tests(row.prompt, count), (row.id, f"asserts {time}")) for row in rows for time in range(answers)],
        "asserts",
    )
    return [
        _draft(row, replies[at * answers : (at + 1) * answers], count) for at, row in enumerate(rows)
    ], replies


def with_programs(drafts: Sequence[Draft], chat: Chat, solutions: int) -> tuple[list[Draft], list[Reply]]:
    """The drafts with as many programs each, and the replies."""
    replies = chat.ask(
        [
            (
                CHAT_STYLE.prompt(draft.problem).messages[0]["content"],
                (draft.problem.task_id, f"program {time}"),
            )
            for draft in drafts
            for time in range(solutions)
        ],
        "programs",
    )
    filled = []
    for at, draft in enumerate(drafts):
        own = replies[at * solutions : (at + 1) * solutions]
        programs = tuple(CHAT_STYLE.program(draft.problem, _text(reply)) for reply in own)
        filled.append(replace(draft, programs=programs))
    return filled, replies


def judged(drafts: Sequence[Draft], journal: Journal, policy: Policy) -> list[Draft]:
    """The drafts with what their programs agree on; verdicts are kept in the journal.

    A program is run once over all asserts. Where its run ends early (time, memory, an exit) the assert that it ended in
    does not hold, and it is run once more over those behind; what is not reached then does not hold either.

    Raises:
        SandboxError: programs cannot be confined here.
    """
    configuration = sandbox_configuration(policy)

    def key(draft: Draft, program: str) -> str:
        problem = draft.problem
        return key_of(problem.setup, problem.entry_point, program, draft.asserts, configuration)

    unfinished = {
        key(draft, program): (draft, program)
        for draft in drafts
        for program in draft.programs
        if key(draft, program) not in journal.rows
    }
    marks = dict.fromkeys(unfinished, "")
    for last in (False, True):
        if not unfinished:
            break
        at = list(unfinished)
        programs = [
            (_with_tests(draft, len(marks[name])), program) for name, (draft, program) in unfinished.items()
        ]
        for place, result in judge(programs, policy, description="running"):
            name, (draft, _) = at[place], unfinished[at[place]]
            marks[name] += result.marks
            ended_early = len(marks[name]) < len(draft.asserts)
            marks[name] += "-" * ended_early
            if last or not ended_early or result.outcome is Outcome.SYNTAX:
                journal.append(name, {"marks": marks[name]})
                del unfinished[name]
    return [
        replace(
            draft, consensus=consensus([_held(journal, key(draft, program)) for program in draft.programs])
        )
        for draft in drafts
    ]


def _held(journal: Journal, key: str) -> frozenset[int]:
    return frozenset(at for at, mark in enumerate(journal.rows[key]["marks"]) if mark == "+")


def _with_tests(draft: Draft, first: int) -> Problem:
    """The problem with the draft's asserts from the place `first` on."""
    return replace(draft.problem, tests=CheckTests(source=check_source(draft.asserts[first:])))


def _draft(row: ProblemRow, replies: Iterable[Reply], count: int) -> Draft:
    asserts = [statement for reply in replies for statement in asserts_in(_text(reply))[:count]]
    name = entry_point(asserts, row.prompt) or ""
    lines = [of_candidate(statement, name) for statement in asserts if function_under_test(statement) == name]
    problem = Problem(
        suite="problems",
        task_id=row.id,
        prompt="",
        words=row.prompt if not name or name in names_in(row.prompt) else named(row.prompt, name),
        entry_point=name,
        canonical_program="",
        tests=None,
        setup=row.setup,
    )
    return Draft(problem=problem, asserts=tuple(dict.fromkeys(lines)))


def _text(reply: Reply) -> str:
    return reply.choices[0].text if reply.choices else ""
