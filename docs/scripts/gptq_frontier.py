"""Ways of making a 4-bit GPTQ model, each with several draws of calibration rows: bytes against KL, by form of text.

    python docs/scripts/gptq_frontier.py CHECKPOINT --work FOLDER --report FILE.jsonl [--seeds 3]

Runs `pangu-convert gptq` and `pangu-convert verify` a seed and way, the first seed of all ways first. What the report
has already is skipped, so an interrupted run goes on; artifacts stay in FOLDER, to be scored. Prints a table: the
median over the seeds, and the least and the largest behind it.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion_fidelity import measure, num_parameters

FINE = ["gptq", "--bits", "4", "--group-size", "64"]
MIXED = [*FINE, "--chat", "--eight-bits", "down_proj", "first", "last"]
WAYS: dict[str, list[str]] = {
    "g128, the default": ["gptq", "--bits", "4", "--group-size", "128"],
    "g64, conversations too, down_proj, first and last block in 8 bits": MIXED,
    "g64": FINE,
    "g64, conversations too": [*FINE, "--chat"],
    "g64, conversations too, down_proj in 8 bits": [*FINE, "--chat", "--eight-bits", "down_proj"],
    "g64, conversations too, --mse 2.4": [*FINE, "--chat", "--mse", "2.4"],
    "g64, conversations too, --gptaq": [*FINE, "--chat", "--gptaq"],
    "g64, conversations too, 128 rows": [*FINE, "--chat", "--samples", "128"],
}


def main() -> None:
    """Run what is missing from the report, then print all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts, which stay there")
    parser.add_argument("--report", type=Path, required=True, help="rows as JSONL")
    parser.add_argument(
        "--seeds", type=int, default=3, help="draws of calibration rows (default: %(default)s)"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    arguments = parser.parse_args()
    lines = arguments.report.read_text().splitlines() if arguments.report.exists() else []
    rows = [json.loads(line) for line in lines]
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            if any((row["name"], row["calibration"]["seed"]) == (way, seed) for row in rows):
                continue
            folder = arguments.work / f"{list(WAYS).index(way)}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            options = [*WAYS[way], "--seed", str(seed), "--name", folder.name]
            rows.append(measure(way, options, arguments.checkpoint, folder))
            with arguments.report.open("a") as report:
                report.write(json.dumps(rows[-1]) + "\n")
    print(table(rows, num_parameters(arguments.checkpoint)))


def table(rows: Sequence[dict[str, Any]], parameters: int) -> str:
    """A way a line, as Markdown."""
    forms = list(dict.fromkeys(form for row in rows for form in row["fidelity"]["answers"]))
    head = ["way", "seeds", "weights, MB", "bits a weight", "KL, code", *(f"KL, {form}" for form in forms)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for way in dict.fromkeys(row["name"] for row in rows):
        found = [row for row in rows if row["name"] == way]
        size = found[0]["weight_bytes"]
        by_form = [[row["fidelity"]["kl_mean"] for row in found]]
        by_form += [[row["fidelity"]["answers"][form]["kl_mean"] for row in found] for form in forms]
        cells = [
            way,
            str(len(found)),
            f"{size / 1e6:.0f}",
            f"{8 * size / parameters:.2f}",
            *map(spread, by_form),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    main()
