"""What each conversion of a checkpoint costs and how close it stays: size, time, peak memory, KL, perplexity.

    python docs/scripts/conversion_fidelity.py CHECKPOINT --work FOLDER --report FILE.jsonl [--prose FOLDER]

Runs `pangu-convert` and `pangu-convert verify` once a row, as a user would, one after the other. A row that the
report has already is skipped, so an interrupted run goes on. Prints the table as Markdown.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).with_name("pangu-convert")
WINDOWS = ["--windows", "10"]
GPTQ_HOLES = ["--samples", "32", "--sequence-length", "256"]
GPTQ = [*GPTQ_HOLES, "--no-holes"]
ROWS: dict[str, list[str]] = {
    "CTranslate2 bfloat16": ["ctranslate2", "--quantization", "bfloat16"],
    "CTranslate2 int8": ["ctranslate2", "--quantization", "int8", "--no-smooth"],
    "CTranslate2 int8, smoothed": ["ctranslate2", "--quantization", "int8"],
    "GPTQ-8 g128": ["gptq", "--bits", "8", *GPTQ],
    "GPTQ-4 g128": ["gptq", "--bits", "4", *GPTQ],
    "GPTQ-4 g128, half of the rows with a hole": ["gptq", "--bits", "4", *GPTQ_HOLES],
    "GPTQ-4 g64": ["gptq", "--bits", "4", "--group-size", "64", *GPTQ],
    "GPTQ-4 g128, on random tokens": ["gptq", "--bits", "4", *GPTQ, "--calibration", "RANDOM"],
    "GPTQ-4 g128, on prose": ["gptq", "--bits", "4", *GPTQ, "--calibration", "PROSE"],
    "GPTQ-4 g128, act-order": ["gptq", "--bits", "4", "--act-order", *GPTQ],
    "GPTQ-4 g64, act-order": ["gptq", "--bits", "4", "--group-size", "64", "--act-order", *GPTQ],
}


def main() -> None:
    """Run what is missing from the report, then print all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts; removed row by row")
    parser.add_argument("--report", type=Path, required=True, help="rows as JSONL")
    parser.add_argument(
        "--prose", type=Path, help="folder of prose to calibrate on; without it that row is left out"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    sources = {
        "RANDOM": str(random_text(arguments.checkpoint, arguments.work)),
        "PROSE": str(arguments.prose),
    }
    rows = (
        [json.loads(line) for line in arguments.report.read_text().splitlines()]
        if arguments.report.exists()
        else []
    )
    for name, options in ROWS.items():
        if name in {row["name"] for row in rows} or (arguments.prose is None and "PROSE" in options):
            continue
        row = measure(
            name, [sources.get(option, option) for option in options], arguments.checkpoint, arguments.work
        )
        row["command"] = f"pangu-convert {' '.join(options)}"  # without this machine's paths
        rows.append(row)
        with arguments.report.open("a") as report:
            report.write(json.dumps(row) + "\n")
    print(table(rows, num_parameters(arguments.checkpoint)))


def measure(name: str, options: list[str], checkpoint: Path, work: Path) -> dict[str, Any]:
    """Convert and verify once."""
    artifact = work / "artifact"
    subprocess.run(["rm", "-rf", artifact], check=True)
    verb, *rest = options
    convert = [COMMAND, verb, checkpoint, "--output", artifact, *rest]
    print(name, *map(str, convert), file=sys.stderr)
    seconds, peak_bytes = timed(convert)
    verify = subprocess.run(
        [COMMAND, "verify", artifact, "--against", checkpoint, *WINDOWS], stdout=sys.stderr, check=False
    )
    if verify.returncode not in (0, 1):
        raise SystemExit(f"verify failed on {name}")
    manifest = json.loads((artifact / "manifest.json").read_text())
    weight_bytes = sum(manifest["files"][file]["size_bytes"] for file in manifest["weight_files"])
    return {
        "name": name,
        "command": f"pangu-convert {' '.join(options)}",
        "convert_seconds": round(seconds, 1),
        "convert_peak_bytes": peak_bytes,
        "weight_bytes": weight_bytes,
        "within_bounds": verify.returncode == 0,
        "load_average": os.getloadavg()[1],
        "fidelity": manifest["scores"]["fidelity"],
        "calibration": manifest["calibration"],
    }


def timed(command: list[Any]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command and its children."""
    start = time.monotonic()
    process = subprocess.Popen(list(map(str, command)))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.monotonic() - start, usage.ru_maxrss * 1024


def random_text(checkpoint: Path, work: Path) -> Path:
    """A .jsonl file of text decoded from uniformly random tokens, seed 0."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    choice = random.Random(0)
    path = work / "random.jsonl"
    with path.open("w") as file:
        for _ in range(64):
            ids = [choice.randrange(tokenizer.get_vocab_size()) for _ in range(512)]
            file.write(json.dumps({"text": tokenizer.decode(ids)}) + "\n")
    return path


def num_parameters(checkpoint: Path) -> int:
    """Weights in the checkpoint's files; a tied one counts once."""
    from pangu_training.stage.checkpoint import read_checkpoint

    return read_checkpoint(checkpoint).num_elements


def table(rows: list[dict[str, Any]], parameters: int) -> str:
    """The rows as Markdown. Bits a weight are those of the whole artifact, 16 bit embeddings included."""
    lines = [
        "| artifact | mean KL | KL p99 | same top-1 | perplexity (source) | weights, MB | bits a weight "
        "| time, s | peak RSS, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row["fidelity"]
        lines.append(
            f"| {row['name']} | {found['kl_mean']:.5f} | {found['kl_p99']:.4f} | {found['same_top1']:.2%} "
            f"| {found['perplexity']:.3f} ({found['source_perplexity']:.3f}) | {row['weight_bytes'] / 1e6:.0f} "
            f"| {8 * row['weight_bytes'] / parameters:.2f} "
            f"| {row['convert_seconds']:.0f} | {row['convert_peak_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
