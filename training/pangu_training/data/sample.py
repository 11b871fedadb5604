"""`pangu-train sample`: responses to each problem from the student and from its teachers, at stated temperatures.

The first stage of RRTF (arXiv 2307.14936, section 3.1). One source is asked after the other, so that two models never
share the machine. --output grows by a line a response; the same command goes on where it was stopped, and asks nothing
twice.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.stage.command import add_server_arguments, number_within, whole_number
from pangu_training.stage.errors import PanguError

if TYPE_CHECKING:
    from pangu_training.asking.sources import Source
    from pangu_training.data.draws import Drawing, DrawOptions
    from pangu_training.evaluation.words import ProblemRow
    from pangu_training.stage.line_file import Journal

STYLES = ("pangu", "chat", "wizardcoder")  # those of styles.py that can state a problem in words


class SampleError(PanguError):
    """The responses cannot be sampled as asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("problems", type=Path, help="problems, JSONL")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="responses, JSONL; one that is there goes on",
    )
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="the first N problems only")
    group = parser.add_argument_group(
        "sources",
        "WHERE is an artifact's folder, or the URL of a server (URL#MODEL where it has several models), or several "
        "URLs with commas between, which share the requests. Their key is in $OPENAI_API_KEY.",
    )
    group.add_argument("--student", type=_named, metavar="NAME=WHERE", help="the model to be trained")
    group.add_argument(
        "--teacher", type=_named, action="append", default=[], metavar="NAME=WHERE", help="any number of them"
    )
    group.add_argument("--recorded", action="store_true", help="take the problems' answers as a teacher's")
    for role, style in (("student", "pangu"), ("teacher", "chat")):
        group.add_argument(
            f"--{role}-style", default=style, choices=STYLES, help="prompt style (default: %(default)s)"
        )
    group = parser.add_argument_group("responses")
    group.add_argument(
        "--samples",
        type=whole_number(1),
        default=1,
        metavar="K",
        help="of each source to each problem at each temperature (default: %(default)s)",
    )
    group.add_argument(
        "--temperatures",
        type=number_within(0, 2),
        nargs="+",
        default=[0.2, 0.8],
        metavar="T",
        help="0 is greedy (default: 0.2 0.8)",
    )
    group.add_argument("--top-p", type=number_within(0, 1), default=0.95, help="(default: %(default)s)")
    group.add_argument(
        "--max-tokens", type=whole_number(1), default=1024, help="a response (default: %(default)s)"
    )
    group.add_argument(
        "--seed", type=int, help="sample i is asked for by itself, with seed + i (default: draw anew)"
    )
    group.add_argument(
        "--concurrency",
        type=whole_number(1),
        default=8,
        help="requests at a time to each server (default: %(default)s)",
    )
    add_server_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Sample what is missing, report all.

    Raises:
        DataError, SampleError, SourceError: before anything is asked.
        ServedError: a source does not answer, or refuses every problem.
    """
    from pangu_training.asking.endpoint import file_stem
    from pangu_training.data.draws import Drawing
    from pangu_training.evaluation.words import read_problems
    from pangu_training.stage.line_file import Journal

    options = _options(arguments)
    problems = read_problems(arguments.problems).rows[: arguments.limit]
    sources = _sources(arguments)  # all of them before the first is asked: hours later would be late
    output: Path = arguments.output
    with Journal(output) as journal:
        recorded = _record(journal, problems) if arguments.recorded else []
        drawings = [Drawing(source, problems, options, journal) for source in sources]
        for drawing in drawings:
            if drawing.finished:
                continue
            source = drawing.source
            log = output.with_name(f"{output.stem}.{file_stem(source.name)}.server.log")
            with source.serving(device=arguments.device, threads=arguments.threads, log=log) as endpoints:
                drawing.run(endpoints)
        asked = {*recorded, *(key for drawing in drawings for key in drawing.keys)}
        others = len(journal.rows.keys() - asked)
    reports = {drawing.source.name: report_of(drawing) for drawing in drawings}
    for name, report in reports.items():
        print(in_words(name, report))
    if arguments.recorded:
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


def report_of(drawing: "Drawing") -> dict[str, Any]:
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


def _named(text: str) -> tuple[str, str]:
    """An argument's type: the two parts of `NAME=WHERE`."""
    name, _, place = text.partition("=")
    if not name or not place:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL[,URL…] or NAME=ARTIFACT")
    return name, place


def _options(arguments: argparse.Namespace) -> "DrawOptions":
    from pangu_training.data.draws import DrawOptions

    temperatures = tuple(dict.fromkeys(arguments.temperatures))
    if arguments.samples > 1 and 0 in temperatures:
        raise SampleError(
            f"--samples {arguments.samples} at temperature 0 are all alike: leave one of the two out"
        )
    names = ("samples", "top_p", "max_tokens", "seed", "concurrency")
    return DrawOptions(temperatures=temperatures, **{name: getattr(arguments, name) for name in names})


def _sources(arguments: argparse.Namespace) -> "list[Source]":
    from pangu_training.asking.sources import source_of
    from pangu_training.data.responses import STUDENT, TEACHER

    students = [(STUDENT, *arguments.student, arguments.student_style)] if arguments.student else []
    named = [*students, *((TEACHER, *teacher, arguments.teacher_style) for teacher in arguments.teacher)]
    if not named and not arguments.recorded:
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
