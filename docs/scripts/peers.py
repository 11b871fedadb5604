"""pangu-serve against llama.cpp's server and OpenVINO GenAI: the same weights, CPU and requests, in alternation.

    python docs/scripts/peers.py int8=ARTIFACT "torch=ARTIFACT,--engine torch" --output DIR [--rounds 3] ...

A system is NAME=ARTIFACT[,FLAGS...], which pangu-serve serves with these flags, or NAME=COMMAND: any OpenAI-style
server, with `{port}` and perhaps `{threads}` in its command. The peers are installed first (`peers_install.py`), with
the checkpoint's weights in 8 bits (GGUF, Q8_0).

    decode      ms a token after the first: prompts of 64 tokens, 64 new ones
    prefill     tokens/s: prompts of 512 tokens, over the time to the first new one
    editor      TTFT and whole answer of 16 tokens: a file of 1,500 tokens, each request 5 tokens longer
    fim         the same with 300 tokens behind the cursor, sent in the order prefix, suffix
    clients     tokens/s and TTFT p95 in a closed loop: prompts of 23 to 482 tokens, answers of 32 and 64

In a round each measure is taken of one system after the other, and the others sleep. The next round has other texts,
and the systems start anew. Nothing is sent twice but what an editor sends again: nothing else can be cached.
`DIR/peers.jsonl` has a line a measure, `DIR/peers.md` the table: medians of the rounds, the least and the most, and
ratios to llama-server in the same round. What is measured is not measured again. `--rounds 0` only installs.
"""

import argparse
import contextlib
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import peers_install as install
import peers_systems as systems
from peers_systems import Spec, System
from peers_workloads import FILE_TOKENS, MEASURES, MORE_IS_BETTER, Code, Sizes, Workload, workloads
from tokenizers import Tokenizer

from pangu_bench.cost_tables import machine, rows
from pangu_bench.environment import environment
from pangu_convert.code_text import library_file, library_files
from pangu_convert.download import cache_folder
from pangu_convert.infilling import fim_tokens
from pangu_training.asking.endpoint import ServedError, file_stem
from pangu_training.stage.command import describe
from pangu_training.stage.errors import PanguError
from pangu_training.stage.line_file import Journal, key_of
from pangu_training.stage.output import write_file

REFERENCE = "llama-server"
PEERS = (REFERENCE, "openvino")
FILES = 24  # of the standard library: where the texts come from
CHECKPOINT = "qwen2.5-coder-0.5b"

Row = Mapping[str, Any]


def main() -> int:
    """Install, measure what is missing, report; 1 when a system failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", type=systems.parsed, metavar="NAME=ARTIFACT|COMMAND")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for rows and table")
    parser.add_argument("--checkpoint", type=Path, help=f"of the peers (default: $PANGU_HOME's {CHECKPOINT})")
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS, help="default: both")
    parser.add_argument("--measures", nargs="+", default=MEASURES, choices=MEASURES, help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of all measures but decode")
    parser.add_argument("--decode-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=5, help="of decode and prefill")
    parser.add_argument("--keystrokes", type=int, default=15, help="of the editor")
    parser.add_argument("--per-client", type=int, default=3, help="requests")
    arguments = parser.parse_args()
    home = cache_folder()
    checkpoint = arguments.checkpoint or home / "checkpoints" / CHECKPOINT
    try:
        specs = [*_peers(arguments.peers, checkpoint, home / "peers"), *arguments.systems]
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            parser.error(f"two systems have one name: {', '.join(names)}")
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        fim = fim_tokens(tokenizer)
        if fim is None:
            parser.error(f"{checkpoint} has no FIM tokens: choose a model that completes code")
        sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__slots__})
        wanted, rounds = workloads(sizes, fim.prompt), arguments.rounds
        with Journal(arguments.output / "peers.jsonl") as journal:
            failed = _measure(journal, specs, wanted, _files(tokenizer), rounds=rounds, logs=arguments.output)
            keys = [_key(s, w, turn) for turn in range(rounds) for w in wanted for s in specs]
            report = table([journal.rows[key] for key in keys if key in journal.rows], names)
    except (PanguError, OSError) as error:
        parser.error(describe(error))
    write_file(arguments.output / "peers.md", report.encode())
    print(report)
    return 1 if failed else 0


def _peers(names: Sequence[str], checkpoint: Path, folder: Path) -> list[Spec]:
    """Those that are wanted, installed."""
    if not names:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    model, found = install.q8_0(checkpoint, folder), []
    if REFERENCE in names:
        found.append(systems.llama_server(install.llama_server(folder), model))
    if "openvino" in names:
        found.append(systems.openvino(install.openvino_python(folder), model))
    return found


def _files(tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of library files that are long enough for an editor, the same ones each time."""
    large = [path for path in library_files() if path.stat().st_size > 16 * FILE_TOKENS]
    chosen = random.Random(0).sample(large, min(FILES, len(large)))
    return [tokenizer.encode(library_file(path), add_special_tokens=False).ids for path in chosen]


def _key(spec: Spec, workload: Workload, turn: int) -> str:
    return key_of(spec.name, spec.shown(), workload.shape(), turn)


def _measure(
    journal: Journal,
    specs: Sequence[Spec],
    wanted: Sequence[Workload],
    files: Sequence[list[int]],
    *,
    rounds: int,
    logs: Path,
) -> set[str]:
    """Append what is missing; the names of the systems that failed, which are asked for nothing more."""
    failed: set[str] = set()
    for turn in range(rounds):
        first = turn % len(specs) if specs else 0
        order = [*specs[first:], *specs[:first]]
        for threads in sorted({workload.threads for workload in wanted}):
            missing = [
                (workload, spec)
                for workload in wanted
                for spec in order
                if workload.threads == threads and _key(spec, workload, turn) not in journal.rows
            ]
            with contextlib.ExitStack() as stack:
                running: dict[str, System] = {}
                for workload, spec in missing:
                    if spec.name in failed:
                        continue
                    try:
                        if spec.name not in running:
                            system = System(spec, threads, logs / f"{file_stem(spec.name)}.log")
                            running[spec.name] = stack.enter_context(system)
                        row = _measured(running[spec.name], workload, Code(files, f"{turn} {workload.name}"))
                    except (ServedError, httpx.HTTPError) as error:
                        failed.add(spec.name)
                        print(f"{spec.name}, {workload.name}: {describe(error)}", file=sys.stderr)
                        continue
                    row = {"system": spec.name, "round": turn, "command": spec.shown(), **row}
                    journal.append(_key(spec, workload, turn), row)
                    print(
                        f"round {turn + 1}: {spec.name}, {workload.name}: {row['figures']}", file=sys.stderr
                    )
    return failed


def _measured(system: System, workload: Workload, code: Code) -> dict[str, Any]:
    """A line of results; times in seconds."""
    requests = workload.make(code, workload.warm_up + workload.requests)
    system.run(requests[: workload.warm_up], workload.clients)
    facts = environment(workload.threads)
    seconds, timings = system.run(requests[workload.warm_up :], workload.clients)
    return {
        **workload.shape(),
        "figures": workload.figures(seconds, requests[workload.warm_up :], timings),
        "seconds": seconds,
        "timings": timings,
        "runs": system.identity,
        "environment": facts,
    }


def table(found: Sequence[Row], names: Sequence[str]) -> str:
    """Medians and ratios as Markdown; `found` are the rows of all rounds, `names` the columns."""
    if not found:
        return "Nothing is measured yet."
    measures = list(dict.fromkeys((row["name"], unit) for row in found for unit in row["figures"]))
    lines = rows(
        ("", *names),
        (
            (f"{measure}: {unit}", *(_cell(found, measure, unit, name) for name in names))
            for measure, unit in measures
        ),
    )
    last = {row["system"]: row for row in found}
    commands = rows(
        ("system", "command", "what runs"),
        (
            (
                name,
                f"`{row['command']}`",
                ", ".join(f"{what} {value}" for what, value in row["runs"].items() if value is not None),
            )
            for name, row in last.items()
        ),
    )
    facts = [row["environment"] for row in found]
    dates, loads = sorted(fact["date"][:16] for fact in facts), [fact["load_average"] for fact in facts]
    return (
        f"# Peers\n\n{lines}\n\nMedian of the rounds (least–most), then how many times as fast as {REFERENCE} in the "
        f"same round, likewise: above 1 is faster. {max(row['round'] for row in found) + 1} rounds, {dates[0]} to "
        f"{dates[-1]} UTC, load average {min(loads):.1f} to {max(loads):.1f}.\n\n{commands}\n\n{machine(facts[-1])} "
        f"{REFERENCE} is of llama-cpp-python {install.LLAMA_CPP_PYTHON}, compiled by {install.cxx_version()}.\n"
    )


def _cell(found: Sequence[Row], measure: str, unit: str, name: str) -> str:
    """A system's figures of a measure, and their ratios to the reference's."""
    by_round = {
        row["round"]: row["figures"][unit] for row in found if (row["system"], row["name"]) == (name, measure)
    }
    if not by_round:
        return "—"
    reference = {
        row["round"]: row["figures"][unit]
        for row in found
        if (row["system"], row["name"]) == (REFERENCE, measure)
    }
    text = _spread(list(by_round.values()), lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.1f}")
    ratios = [
        value / reference[turn] if unit == MORE_IS_BETTER else reference[turn] / value
        for turn, value in by_round.items()
        if turn in reference and name != REFERENCE
    ]
    return f"{text}; {_spread(ratios, lambda value: f'{value:.2f}')}x" if ratios else text


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Median (least–most)."""
    around = f" ({shown(min(values))}–{shown(max(values))})" if len(values) > 1 else ""
    return shown(statistics.median(values)) + around


if __name__ == "__main__":
    sys.exit(main())
