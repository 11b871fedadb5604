"""`pangu-bench editor`: what an editor feels, with an artifact or with a server that runs already.

Someone types into a file, and every few tokens the editor asks for the code at the cursor, with the code behind it
where the server takes that. Half of the requests are dropped when the next keystroke comes, and some completions
become part of the file. The keystrokes are drawn from --seed: they are the same for every server. A file is measured
whole; what is in --output is not measured again.
"""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pangu_bench.options import FILES, EditorOptions, Running, running_server
from pangu_bench.rows import RowFile
from pangu_training.stage.command import ServerOptions
from pangu_training.stage.options import argument, counted, nested, option
from pangu_training.stage.output import write_file

ROWS = "editor.jsonl"  # behind the model's name

DEFINITIONS = """\
- **Asked with**: how the code behind the cursor was sent: as `suffix` of /v1/completions, through llama.cpp's /infill,
  or not at all.
- **Prompt**: its tokens at the median keystroke, as the server counts them. **Cached**: those of them that the server
  still had from earlier requests, and did not compute again.
- **TTFT**: from the request until the first text is there: what someone who types waits for. **Whole**: until the
  completion is complete. Both are of the keystrokes that wait for their completion: the same ones for every server.
- **Opened**: TTFT of a file's first request, when the server has not seen the file before. Not part of the others.
- **Dropped**: requests whose connection the next keystroke closed before the completion was there. A faster server has
  fewer. **Spent on these**: prompt tokens that the server computed, and tokens that it generated, for completions that
  nobody read, by its own counters. "Up to": it does not count what it had in its cache. A dash: it does not say."""

ASKED = {"suffix": "suffix", "infill": "/infill", "off": "prefix only"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasureEditorOptions:
    """Which server is typed against, and into what files."""

    artifact: Path | None = argument("folder that pangu-convert wrote", None)
    base_url: Running | None = option(
        "a server that runs already, called NAME in the results; its key is in $OPENAI_API_KEY",
        None,
        type=running_server,
        metavar="URL[=NAME]",
    )
    output: Path = option("folder for rows and table", metavar="DIR", writes="results")
    file_tokens: tuple[int, ...] = counted("sizes of the files", FILES, least=50)
    editor: EditorOptions = nested(EditorOptions)
    server: ServerOptions = nested(ServerOptions)


def measure_editor(options: MeasureEditorOptions) -> None:
    """Type into the files that are missing, report all."""
    from pangu_bench.editing import figures, is_typed, type_files
    from pangu_bench.subject import Subject

    files = sorted(set(options.file_tokens))
    subject = Subject.of(options.artifact, options.base_url, options.server)
    options.editor.check(subject.name, subject.context, files[-1])
    with RowFile(subject.file(options.output, ROWS), configuration(subject.identity, options.editor)) as rows:
        if not is_typed(rows, files):
            with subject.served(rows, options.output) as endpoint:
                asyncio.run(type_files(rows, endpoint, subject.tokenizer, files, options.editor))
        report = {
            "model": subject.name,
            "options": dataclasses.asdict(options.editor),
            **subject.what_ran(rows),
            "files": figures(rows, files),
        }
    text = table(report)
    write_file(subject.file(options.output, "editor.md"), text.encode())
    print(text)
    print(json.dumps(report))


def configuration(subject: Mapping[str, Any], options: EditorOptions) -> dict[str, Any]:
    """What shapes the rows: all but the files' sizes, which can be added to."""
    return {"subject": subject, **dataclasses.asdict(options)}


def table(report: Mapping[str, Any]) -> str:
    """The files as Markdown."""
    from pangu_bench.cost_tables import machine, milliseconds, rows

    head = (
        "file, tokens",
        "asked with",
        "prompt",
        "cached",
        "TTFT median / p95, ms",
        "whole median / p95, ms",
        "opened, ms",
        "dropped",
        "spent on these, tokens",
    )
    lines = rows(
        head,
        [
            (
                f"{file['file_tokens']:,}",
                ASKED[file["fim"]],
                _tokens(file["prompt_tokens"]),
                _cached(file),
                milliseconds(file["ttft_seconds"], "median", "p95"),
                milliseconds(file["answer_seconds"], "median", "p95"),
                f"{1e3 * file['opened_seconds']:.1f}",
                f"{file['cancelled']} of {file['keystrokes']}",
                _spent(file["cancelled_work"]),
            )
            for file in report["files"]
        ],
    )
    return (
        f"# {report['model']} in an editor\n\n{_what(report)}\n\n{lines}\n\n{DEFINITIONS}\n\n"
        f"{report['served']}. {machine(report['environment'])}\n"
    )


def _what(report: Mapping[str, Any]) -> str:
    """What was done, in words."""
    options, files = report["options"], report["files"]
    first = files[0]
    least, most = options["pause_ms"]
    texts = "; ".join(f"{file['file_tokens']:,} tokens: {file['text']}" for file in files)
    guessed = "" if first["counted"] else " Sizes are guessed from characters: the server has no /tokenize."
    return (
        f"Someone opens a file and types into it: {first['keystrokes']} keystrokes of a few tokens, after each of "
        f"which a completion of {options['new_tokens']} tokens is asked for. {first['waited']} of them wait for it; "
        f"completions accepted into the file: {first['accepted']}. After the others the next keystroke comes in "
        f"{least} to {most} ms. Seed {options['seed']}; {texts}.{guessed}"
    )


def _tokens(number: float | None) -> str:
    return "—" if number is None else f"{number:,.0f}"


def _cached(file: Mapping[str, Any]) -> str:
    if file["cached_tokens"] is None or not file["prompt_tokens"]:
        return "—"
    return f"{file['cached_tokens']:,.0f} ({file['cached_tokens'] / file['prompt_tokens']:.0%})"


def _spent(work: Mapping[str, Any]) -> str:
    prompt, generated = work["prompt_tokens"], work["generated_tokens"]
    if prompt is None and generated is None:
        return "—"
    bound = "up to " if work["cached_tokens"] is None else ""
    return f"{bound}{_tokens(prompt)} + {_tokens(generated)}"
