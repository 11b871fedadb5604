"""A comparison as one HTML page that needs nothing else: pictures, then the tables of the Markdown text."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pangu_bench.cost_tables import tpot_seconds
from pangu_training.evaluation import pictures
from pangu_training.evaluation.pictures import Point, legend, lines, ranges, scatter, solved

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #68727d; --line: #dfe3e8; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --faint: #98a2ad; --line: #333b44; --paper: #14181d } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin: 0 0 .4rem }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--faint); font-weight: 500 } td:first-child { white-space: nowrap } code { font-size: .9em }
.pictures { display: flex; flex-wrap: wrap; gap: 1.6rem } figure { margin: 0; max-width: 100% }
svg { max-width: 100%; height: auto }
.legend span { margin-right: 1.2rem; white-space: nowrap } .legend svg { vertical-align: -1px }
"""


def page(
    report: Mapping[str, Any], text: str, loads: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]
) -> str:
    """The page. `text` is the Markdown; `loads` what `pangu-bench load` measured, as (name, levels)."""
    names = [artifact["name"] for artifact in report["artifacts"]]
    head, _, rest = text.partition("\n\n## ")
    return document(
        names,
        f"{html(head)}{legend(names)}"
        f'<div class="pictures">{"".join(_pictures(report, loads))}</div>{html("## " + rest)}',
    )


def document(names: Sequence[str], body: str) -> str:
    """A whole page about the models `names`."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(', '.join(names))}</title><style>{STYLE}{pictures.STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def html(text: str) -> str:
    """The HTML of the Markdown that table.py writes: headings, tables, lists, paragraphs, bold, code."""
    blocks = []
    for block in text.strip().split("\n\n"):
        if heading := re.fullmatch(r"(#+) (.*)", block):
            level = len(heading[1])
            blocks.append(f"<h{level}>{_inline(heading[2])}</h{level}>")
        elif block.startswith("| "):
            head, _, *body = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in block.splitlines()]
            cells = "".join(f"<th>{_inline(cell)}</th>" for cell in head)
            rows = "".join(
                "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in body
            )
            blocks.append(f"<table><tr>{cells}</tr>{rows}</table>")
        elif block.startswith("- "):
            items = block.removeprefix("- ").split("\n- ")
            blocks.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        else:
            blocks.append(f"<p>{_inline(block)}</p>")
    return "".join(blocks)


def _pictures(
    report: Mapping[str, Any], loads: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]
) -> Iterator[str]:
    artifacts = report["artifacts"]
    scored = [
        (number, artifact, artifact["score"]["pass_at_k"]["1"], *artifact["score"]["intervals"]["1"])
        for number, artifact in enumerate(artifacts)
        if "pass_at_k" in artifact["score"]
    ]
    y_label = f"{artifacts[0]['score']['suite']} pass@1"

    def points(x_of: Any) -> list[Point]:
        return [
            Point(series=number, label=artifact["name"], x=x_of(artifact), y=y, low=low, high=high)
            for number, artifact, y, low, high in scored
            if x_of(artifact) is not None
        ]

    def memory(artifact: Mapping[str, Any]) -> float | None:
        peak_bytes = artifact["costs"]["memory"]["generating_bytes"]
        return None if peak_bytes is None else float(peak_bytes) / 1e9

    def per_token(artifact: Mapping[str, Any]) -> float | None:
        tpot = tpot_seconds(artifact["costs"])
        return 1e3 * tpot["median"] if tpot else None

    for title, x_of, x_label in (
        ("Score against memory", memory, "peak memory, GB"),
        ("Score against ms per token", per_token, "ms per token"),
    ):
        if found := points(x_of):
            yield figure(title, scatter(found, x_label=x_label, y_label=y_label))
    for kind, title in (("itl_seconds", "Time between tokens"), ("ttft_seconds", "Time to the first token")):
        rows = [
            (
                number,
                f"{artifact['name']}, {latency['prompt_tokens']} in",
                {name: 1e3 * value for name, value in latency[kind].items()},
            )
            for number, artifact in enumerate(artifacts)
            for latency in artifact["costs"]["latency"]
            if latency[kind]
        ]
        if rows:
            label = "ms (thick: up to the 95th percentile)"
            yield figure(title, ranges(rows, x_label=label))
    names = [artifact["name"] for artifact in artifacts]
    series = [
        (names.index(name), [(level["concurrency"], level["tokens_per_second"]) for level in levels])
        for name, levels in loads
    ]
    if series:
        chart = lines(series, x_label="requests at a time", y_label="tokens per second")
        yield figure("Throughput under load", chart)
    if scored:
        rows = [(number, artifact["name"], artifact["pass_rates"]) for number, artifact, *_ in scored]
        yield figure("Which problems are solved", solved(rows))


def figure(title: str, picture: str) -> str:
    """A picture under its title."""
    return f"<figure><h3>{escape(title)}</h3>{picture}</figure>"


def _inline(text: str) -> str:
    text = escape(text.replace("\\|", "|"), quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
