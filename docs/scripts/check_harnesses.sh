#!/usr/bin/env bash
# Do other people's harnesses work against pangu-serve, and do they read the right numbers?
#
#   docs/scripts/check_harnesses.sh ARTIFACT CHECKPOINT [HUMANEVALPLUS.jsonl.gz]
#
# Run it where pangu-coder2 is installed (PYTHON=.venv/bin/python by default). ARTIFACT is a float32 CTranslate2 or
# transformers artifact of CHECKPOINT, a Hugging Face folder.
# - lm-evaluation-harness: the log-likelihood of each choice of a task made of Python lines, through local-completions
#   and by its own `hf` model in double precision (its log_softmax in single precision rounds by up to 2e-5 a token).
#   They must agree within 1e-4, and in which choice is the greedy one.
# - guidellm: concurrent streams of exact lengths, through completions and chat.
# - evalplus: its openai backend generates for the first two problems of HumanEval+, if the file is given.
# Each harness lives in an environment of its own in $HARNESSES, or in a temporary folder. Nothing is fetched but
# packages. Exit code 1 when one fails.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,16p' "$0" >&2; exit 2; }
python=$(command -v "${PYTHON:-.venv/bin/python}")
artifact=$(realpath "$1") checkpoint=$(realpath "$2") problems=${3:+$(realpath "$3")}
root=$(realpath "$(dirname "$0")/../..")
work=$(mktemp -d)
environments=${HARNESSES:-$work}
trap 'kill "${server:-}" 2> "$work/kill" || true; wait; rm -rf "$work"' EXIT
# the version that pangu-coder2 pins
grep -E '^torch==' "$root/constraints.txt" > "$work/constraints.txt"

environment() { # NAME PACKAGE...
  local folder=$environments/$1
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$work/constraints.txt" "${@:2}"
}
environment lmeval 'lm_eval[api]==0.4.13' torch transformers accelerate
environment guidellm 'guidellm==0.8.1' torch
[ -z "$problems" ] || environment evalplus evalplus==0.3.1

touch "$work/server"
"$(dirname "$python")/pangu-serve" "$artifact" --port 0 --device cpu --threads "${THREADS:-2}" > "$work/server" &
server=$!
until grep -q 'ready on' "$work/server"; do
  kill -0 $server || { echo "the server did not start" >&2; exit 1; }
  sleep 1
done
url=$(grep -oE 'http://[^ /]+:[0-9]+' "$work/server" | head -n 1)
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OPENAI_API_KEY=none NO_COLOR=1
model=$("$python" -c "import httpx, sys; print(httpx.get(sys.argv[1]).json()['data'][0]['id'])" "$url/v1/models")
status=0

echo "== lm-evaluation-harness"
mkdir "$work/task"
"$python" - "$work/task" <<'PYTHON'
"""A multiple-choice task: which of four goes on with this Python line? The first is what the file has."""

import json
import random
import sys
from pathlib import Path

from pangu_convert.code_text import library_file, library_files

folder, chance, rows = Path(sys.argv[1]), random.Random(0), []
files = library_files()
while len(rows) < 40:
    lines = library_file(chance.choice(files)).splitlines()
    number = chance.randrange(len(lines)) if lines else 0
    words = lines[number].rstrip().split(" ") if lines else []
    if number < 8 or len(words) < 4 or len(lines[number]) > 100:
        continue
    cut = chance.randrange(2, len(words))
    context = "\n".join([*lines[max(0, number - chance.choice((1, 8, 30))) : number], " ".join(words[:cut])])
    endings = [" " + " ".join(words[cut:]), " self", " = None", " 测试 🙂"]
    if context.strip() and endings[0].strip():
        rows.append({"context": context, "choices": endings})
with (folder / "lines.jsonl").open("w", encoding="utf-8") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
(folder / "python_lines.yaml").write_text(f"""\
task: python_lines
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/lines.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
""")
PYTHON
evaluate() { # NAME MODEL ARGUMENTS
  "$environments/lmeval/bin/lm_eval" run --model "$2" --model_args "$3" --tasks python_lines \
    --include_path "$work/task" --device cpu --batch_size "${4:-1}" --log_samples --output_path "$work/$1" \
    > "$work/$1.log" 2>&1 || { tail -n 30 "$work/$1.log" >&2; return 1; }
}
completions="base_url=$url/v1/completions,model=$model,tokenizer=$checkpoint,tokenized_requests=True,max_retries=1"
if HF_HOME=$work/hf evaluate hf hf "pretrained=$checkpoint,dtype=float64" &&
  HF_HOME=$work/hf evaluate ids local-completions "$completions" &&
  HF_HOME=$work/hf evaluate concurrent local-completions "$completions,num_concurrent=4" 4; then
  "$python" - "$work" <<'PYTHON' || status=1
import json
import sys
from pathlib import Path

TOLERANCE = 1e-4


def answers(name: str) -> dict[int, list[tuple[float, bool]]]:
    [path] = Path(sys.argv[1], name).rglob("samples_python_lines_*.jsonl")
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    read = {row["doc_id"]: [answer for [answer] in row["resps"]] for row in rows}
    return {key: [(float(ll), str(greedy) == "True") for ll, greedy in value] for key, value in read.items()}


expected, failed = answers("hf"), False
for name in ("ids", "concurrent"):
    pairs = [(a, b) for key, value in answers(name).items() for a, b in zip(value, expected[key], strict=True)]
    worst = max(abs(a[0] - b[0]) for a, b in pairs)
    flags = sum(a[1] != b[1] for a, b in pairs)
    print(
        f"{name}: {len(pairs)} log-likelihoods differ from hf's by at most {worst:.2e}; {flags} differ in "
        f"is_greedy, of which {sum(b[1] for _, b in pairs)} are true"
    )
    failed |= worst > TOLERANCE or flags > 0
sys.exit(failed)
PYTHON
else
  status=1
fi

echo "== guidellm"
for endpoint in /v1/completions /v1/chat/completions; do
  if (cd "$work" && timeout 600 "$environments/guidellm/bin/guidellm" run --disable-console-interactive \
    --backend "kind=openai_http,target=$url,request_format=$endpoint" --profile kind=concurrent,streams=4 \
    --constraint kind=max_requests,count=12 --data kind=synthetic_text,prompt_tokens=48,output_tokens=24 \
    --tokenizer "kind=huggingface_auto,model=$checkpoint" --output "kind=json,path=$work/guidellm.json" \
    > "$work/guidellm.log" 2>&1); then
    "$python" - "$work/guidellm.json" "$endpoint" <<'PYTHON' || status=1
import json
import sys

[benchmark] = json.load(open(sys.argv[1]))["benchmarks"]
requests = benchmark["requests"]
lengths = {request["output_metrics"]["text_tokens"] for request in requests["successful"]}
numbers = {state: len(rows) for state, rows in requests.items() if rows is not None}
print(f"{sys.argv[2]}: {numbers}, lengths {sorted(lengths)} tokens")
sys.exit(not (numbers["successful"] == 12 and lengths == {24}))
PYTHON
  else
    tail -n 30 "$work/guidellm.log" >&2
    status=1
  fi
done

if [ -n "$problems" ]; then
  echo "== evalplus"
  # It asks again for ever when it is refused, hence the limit.
  if HUMANEVAL_OVERRIDE_PATH=$problems timeout 600 "$environments/evalplus/bin/evalplus.codegen" --model "$model" \
    --dataset humaneval --backend openai --base_url "$url/v1" --greedy --id_range '[0,2]' \
    --root "$work/evalplus" > "$work/evalplus.log" 2>&1; then
    echo "$(cat "$work"/evalplus/humaneval/*.raw.jsonl | wc -l) of 2 answers"
  else
    tail -n 30 "$work/evalplus.log" >&2
    status=1
  fi
fi
exit $status
