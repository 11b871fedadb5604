"""`pangu-train sample`: responses to each problem from the student and from its teachers, at stated temperatures.

The first stage of RRTF (arXiv 2307.14936, section 3.1). One source is asked after the other, so that two models never
share the machine. --output grows by a line a response; the same command goes on where it was stopped, and asks nothing
twice.
"""

import json
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pangu_training.data.draws import Drawing, DrawOptions
from pangu_training.stage.command import ServerOptions
from pangu_training.stage.errors import PanguError
from pangu_training.stage.options import argument, counted, nested, option

if TYPE_CHECKING:
    from pangu_training.asking.sources import Source
    from pangu_training.evaluation.words import ProblemRow
    from pangu_training.stage.line_file import Journal

STYLES = ("pangu", "chat", "wizardcoder")  # those of styles.py that can state a problem in words
SOURCES = (
    "sources: WHERE is an artifact's folder, or the URL of a server (URL#MODEL where it has several models), or "
    "several URLs with commas between, which share the requests. Their key is in $OPENAI_API_KEY."
)


class SampleError(PanguError):
    """The responses cannot be sampled as asked."""


class Named(NamedTuple):
    """A source: what it is called, and where it is."""

    name: str
    place: str


def named_source(text: str) -> Named:
    """An argument's type: `NAME=WHERE`."""
    name, _, place = text.partition("=")
    if not name or not place:
        raise ArgumentTypeError(f"{text!r} is not NAME=URL[,URL…] or NAME=ARTIFACT")
    return Named(name, place)


def artifact_of(source: Named) -> Path:
    """Where the artifact is, if it is one."""
    return Path(source.place)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Which problems, who answers them, and how."""

    problems: Path = argument("problems, JSONL")
    output: Path = option("responses, JSONL; one that is there goes on", metavar="FILE", writes="results")
    limit: int | None = counted("the first N problems only", None)
    student: Named | None = option(
        "the model to be trained",
        None,
        type=named_source,
        metavar="NAME=WHERE",
        reads=artifact_of,
        group=SOURCES,
    )
    teacher: tuple[Named, ...] = option(
        "any number of them",
        (),
        type=named_source,
        action="append",
        metavar="NAME=WHERE",
        reads=artifact_of,
        group=SOURCES,
    )
    recorded: bool = option("take the problems' answers as a teacher's", False, group=SOURCES)
    student_style: str = option("prompt style", "pangu", choices=STYLES, group=SOURCES)
    teacher_style: str = option("prompt style", "chat", choices=STYLES, group=SOURCES)
    responses: DrawOptions = nested(DrawOptions)
    server: ServerOptions = nested(ServerOptions)


def sample(options: SampleOptions) -> None:
    """Sample what is missing, report all.

    Raises:
        DataError, SampleError, SourceError: before anything is asked.
        ServedError: a source does not answer, or refuses every problem.
    """
    from pangu_training.asking.endpoint import file_stem
    from pangu_training.evaluation.words import read_problems
    from pangu_training.stage.line_file import Journal

    responses = _responses(options.responses)
    problems = read_problems(options.problems).rows[: options.limit]
    sources = _sources(options)  # all of them before the first is asked: hours later would be late
    output = options.output
    with Journal(output) as journal:
        recorded = _record(journal, problems) if options.recorded else []
        drawings = [Drawing(source, problems, responses, journal) for source in sources]
        for drawing in drawings:
            if drawing.finished:
                continue
            source = drawing.source
            log = output.with_name(f"{output.stem}.{file_stem(source.name)}.server.log")
            with source.serving(options.server, log=log) as endpoints:
                drawing.run(endpoints)
        asked = {*recorded, *(key for drawing in drawings for key in drawing.keys)}
        others = len(journal.rows.keys() - asked)
    reports = {drawing.source.name: report_of(drawing) for drawing in drawings}
    for name, report in reports.items():
        print(in_words(name, report))
    if options.recorded:
        print(f"recorded: {len(recorded)} responses came with the problems")
    if others:
        print(f"{output} also has {others} responses of other runs, which `rank` reads too")
    print(
        json.dumps(
            {
                "output": str(output),
                "problems": len(problems),
                "sources": reports,
                "recorded": len(recorded),
                "of_other_runs": others,
            }
        )
    )


def report_of(drawing: Drawing) -> dict[str, Any]:
    """What a source's responses come to, earlier runs' included; `drawn` and the rate are this run's.

    `cut_off` and `empty` are shares of the responses.
    """
    source, responses = drawing.source, drawing.responses
    finish_reasons = Counter(str(response.finish_reason) for response in responses)
    empty = sum(not response.text.strip() for response in responses)
    return {
        "role": source.role,
        "model": source.model,
        "style": source.style,
        "responses": len(responses),
        "temperatures": Counter(str(response.temperature) for response in responses),
        "finish_reasons": finish_reasons,
        "cut_off": round(finish_reasons["length"] / len(responses), 4),
        "empty": round(empty / len(responses), 4),
        "completion_tokens": sum(response.completion_tokens or 0 for response in responses),
        "drawn": drawing.drawn,
        "tokens_per_second": round(drawing.tokens / drawing.seconds, 1) if drawing.seconds else None,
        "refused": len(drawing.refusals),
        "first_refusal": drawing.refusals[0] if drawing.refusals else None,
    }


def in_words(name: str, report: Mapping[str, Any]) -> str:
    """A source's report in a few lines."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in report["finish_reasons"].items())
    at = ", ".join(f"{count} at {temperature}" for temperature, count in report["temperatures"].items())
    lines = [
        f"{report['role']} {name} ({report['model']}, style {report['style']}): {report['responses']} responses, {at}",
        f"  {report['completion_tokens']:,} tokens; finish reasons: {reasons}; {report['cut_off']:.1%} cut off",
    ]
    if report["drawn"]:
        lines.append(f"  {report['drawn']} drawn now, {report['tokens_per_second']} tokens/s")
    if report["refused"]:
        lines.append(f"  WARNING: {report['refused']} requests were refused: {report['first_refusal']}")
    if report["cut_off"] > 0.5:
        lines.append(
            "  WARNING: most are cut off: the model does not end in this style, or needs more --max-tokens"
        )
    if report["empty"] > 0.5:
        lines.append("  WARNING: most are empty: the style does not fit the model, or it is broken")
    return "\n".join(lines)


def _responses(options: DrawOptions) -> DrawOptions:
    """A temperature that is given twice is one."""
    temperatures = tuple(dict.fromkeys(options.temperatures))
    if options.samples > 1 and 0 in temperatures:
        raise SampleError(
            f"--samples {options.samples} at temperature 0 are all alike: leave one of the two out"
        )
    return replace(options, temperatures=temperatures)


def _sources(options: SampleOptions) -> "list[Source]":
    from pangu_training.asking.sources import source_of
    from pangu_training.data.responses import STUDENT, TEACHER

    students = [(STUDENT, *options.student, options.student_style)] if options.student else []
    named = [*students, *((TEACHER, *teacher, options.teacher_style) for teacher in options.teacher)]
    if not named and not options.recorded:
        raise SampleError("there is nobody to ask: give --student, --teacher or --recorded")
    for name, count in Counter(name for _, name, _, _ in named).items():
        if count > 1:
            raise SampleError(f"{count} sources are called {name}: give each a name of its own")
    return [source_of(*one) for one in named]


def _record(journal: "Journal", problems: "Iterable[ProblemRow]") -> list[str]:
    """Keep the problems' own answers as a teacher's responses, and return their keys."""
    from pangu_training.data.responses import RECORDED, TEACHER, Response
    from pangu_training.stage.line_file import key_of

    keys = []
    for problem in problems:
        samples: Counter[str] = Counter()
        for answer in problem.answers:
            sample = samples[answer.source]
            samples[answer.source] += 1
            keys.append(key_of(RECORDED, problem.id, problem.prompt, answer.source, answer.text, sample))
            response = Response(
                key=keys[-1],
                problem=problem.id,
                role=TEACHER,
                source=answer.source,
                model=None,
                style=RECORDED,
                temperature=None,
                sample=sample,
                text=answer.text,
                finish_reason=None,
                prompt_tokens=None,
                completion_tokens=None,
                seconds=None,
            )
            if response.key not in journal.rows:
                journal.append(response.key, asdict(response))
    return keys
