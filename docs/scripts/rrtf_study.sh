#!/usr/bin/env bash
# The study in docs/results/rrtf.md: one student, three losses, from problems to served int8 models.
#
#     bash docs/scripts/rrtf_study.sh LeetCodeDataset-v0.2.0-train.jsonl.gz FOLDER
#
# Hours on two cores. The same command goes on where it was stopped.
set -euo pipefail

dataset=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$2" && cd "$2"
have() { [ -e "$1" ]; }

# 1. The student and a teacher
have student || pangu-convert import qwen2.5-coder-0.5b --output student
have teacher || pangu-convert import qwen2.5-coder-1.5b --output teacher
have student-int8 || pangu-convert ctranslate2 student --no-smooth --output student-int8
have teacher-int8 || pangu-convert ctranslate2 teacher --no-smooth --output teacher-int8

# 2. Easy problems with tests, 120 of them held out
have easy.jsonl || { zcat "$dataset" | grep '"difficulty": "Easy"' > easy.part && mv easy.part easy.jsonl; }
have held-out.jsonl ||
    pangu-train problems leetcode:easy.jsonl --output problems.jsonl --held-out held-out.jsonl --held-out-count 120
have apart.jsonl || # relatives in the same dataset share short runs, HumanEval must share none: two rules, two passes
    pangu-train clean problems.jsonl --output apart.jsonl --rejected apart-rejected.jsonl \
        --against problems:held-out.jsonl --drop-words 30
have clean.jsonl || pangu-train clean apart.jsonl --output clean.jsonl --rejected rejected.jsonl --report cleaned.md

# 3. Answers, verdicts, pairs
draw="--student qwen0.5=student-int8 --student-style chat --recorded --samples 1 --temperatures 0.2 0.8 --max-tokens 512"
pangu-train sample clean.jsonl $draw --output responses.jsonl
pangu-train sample held-out.jsonl $draw --output held-out-responses.jsonl
pangu-train sample clean.jsonl --teacher qwen1.5=teacher-int8 --samples 1 --temperatures 0.2 --max-tokens 512 --limit 70 \
    --output responses.jsonl
have ranked.jsonl || pangu-train rank clean.jsonl responses.jsonl --output ranked.jsonl
have held-out-ranked.jsonl || pangu-train rank held-out.jsonl held-out-responses.jsonl --output held-out-ranked.jsonl
have train.jsonl || {
    python "$here/short_pairs.py" student ranked.jsonl --tokens 384 --count 256 > train.part && mv train.part train.jsonl
}

# 4. Three arms, and what each has become
for arm in score-gap unweighted off; do
    have "run-$arm/final" ||
        pangu-train fit train.jsonl --checkpoint student --output "run-$arm" --rank-loss "$arm" \
            --held-out held-out-ranked.jsonl --fine-tuning-loss mean --lora-rank 16 --learning-rate 2e-4 --epochs 1 \
            --global-batch 8 --max-length 512 --precision bf16 --no-gradient-checkpointing
    have "$arm" || pangu-train export "run-$arm" --output "$arm"
    have "$arm-int8" || pangu-convert ctranslate2 "$arm" --output "$arm-int8"
done
have base-int8 || pangu-convert ctranslate2 student --output base-int8 --name base-int8
ask="--suite problems:held-out.jsonl --concurrency 8 --max-tokens 320 --output results"
pangu-bench compare base-int8 off-int8 unweighted-int8 score-gap-int8 $ask --style pangu \
    --prompt-tokens 64 --new-tokens 16 --context 512 --warmup 1 --repeats 3
pangu-bench humaneval base-int8 $ask --style chat # the untrained student knows this format, and not the other

# 5. Each against each
python - <<'END'
import json
from itertools import combinations

from pangu_bench.significance import compare, verdict

with open("results/compare.json") as file:
    rates = {one["name"]: one["pass_rates"] for one in json.load(file)["artifacts"]}
with open("results/base-int8.problems.chat.jsonl") as file:
    rows = [json.loads(line) for line in file]
rates["base-int8 in chat format"] = {row["task_id"]: float(row["passed"]) for row in rows if row["kind"] == "verdict"}
for one, other in combinations(rates, 2):
    print(f"{other} against {one}: {verdict(compare(rates[one], rates[other]))}")
END
