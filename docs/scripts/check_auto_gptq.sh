#!/usr/bin/env bash
# Does auto-gptq itself load a GPTQ artifact of pangu-coder2, and generate what gptqmodel does?
#
#   docs/scripts/check_auto_gptq.sh ARTIFACT...
#
# Run it where pangu-coder2[gptq] is installed (PYTHON=.venv/bin/python by default). auto-gptq 0.7.1 is archived
# and does not import with transformers 5, so it gets an environment of its own: in $OLD_VENV, or in a temporary
# folder that is removed. It is compared, in float32 on the CPU, with pangu-coder2's de-quantization, which is exact,
# and with gptqmodel's packed kernel, which multiplies in bfloat16. Exit code 1 when tokens differ from the exact ones.
set -euo pipefail

python=${PYTHON:-.venv/bin/python}
[ $# -gt 0 ] || { sed -n '2,9p' "$0" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
old=${OLD_VENV:-$work/venv}
if [ ! -x "$old/bin/python" ]; then
  "$python" -m venv "$old"
  # the versions that pangu-coder2 pins
  grep -E '^(torch|numpy|pip)==' "$(dirname "$0")/../../constraints.txt" > "$work/constraints.txt"
  "$old/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$work/constraints.txt" \
    auto-gptq==0.7.1 transformers==4.49.0 peft==0.13.2 accelerate==1.2.1 torch numpy
fi

cat > "$work/generate.py" <<'PYTHON'
"""generate.py auto_gptq|gptqmodel|exact ARTIFACT OUTPUT: greedy tokens of three prompts, as JSON."""

import json
import sys
from importlib import metadata
from pathlib import Path

import torch
from tokenizers import Tokenizer

library, artifact, output = sys.argv[1:]
if library == "auto_gptq":
    from auto_gptq import AutoGPTQForCausalLM

    model = AutoGPTQForCausalLM.from_quantized(
        artifact,
        device="cpu",
        torch_dtype=torch.float32,
        use_safetensors=True,
        # its faster paths are CUDA only
        use_triton=False,
        inject_fused_attention=False,
        inject_fused_mlp=False,
        disable_exllama=True,
        disable_exllamav2=True,
    ).model
elif library == "exact":
    from pangu_convert.artifact import read_artifact
    from pangu_convert.gptq_weights import load_dequantized

    model = load_dequantized(read_artifact(Path(artifact)), torch.float32)
else:
    from gptqmodel import GPTQModel

    model = GPTQModel.load(artifact, device="cpu", dtype=torch.float32).model
model.eval()
tokenizer = Tokenizer.from_file(f"{artifact}/tokenizer.json")
answers = {}
for prompt in ("def fibonacci(n):", "import os\n\nfor name in os.listdir('.'):\n    print(", "class Stack:\n"):
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    with torch.inference_mode():
        first = model(ids).logits[0, -1].float()
        whole = model.generate(
            inputs=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=32,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=0,
        )
    answers[prompt] = {"tokens": whole[0, ids.shape[1] :].tolist(), "logits": first.tolist()}
names = ("auto_gptq", "gptqmodel", "transformers", "torch", "peft", "accelerate")
installed = {dist.metadata["Name"].lower().replace("-", "_"): dist.version for dist in metadata.distributions()}
versions = {name: installed[name] for name in names if name in installed}
Path(output).write_text(json.dumps({"library": library, "versions": versions, "answers": answers}))
PYTHON

cat > "$work/compare.py" <<'PYTHON'
import json
import sys
from pathlib import Path

old, new = (json.loads(Path(name).read_text()) for name in sys.argv[1:])
print(f"{old['library']} {old['versions']} against {new['library']} {new['versions']}")
same = True
for prompt, old_answer in old["answers"].items():
    new_answer = new["answers"][prompt]
    pairs = list(zip(old_answer["logits"], new_answer["logits"], strict=True))
    difference = max(abs(a - b) for a, b in pairs)
    largest = max(abs(b) for _, b in pairs)
    equal = old_answer["tokens"] == new_answer["tokens"]
    same &= equal
    print(
        f"{prompt!r}: {len(new_answer['tokens'])} greedy tokens {'equal' if equal else 'DIFFER'}, logits of the first "
        f"differ by at most {difference:.2g} (the largest is {largest:.3g})"
    )
sys.exit(0 if same else 1)
PYTHON

status=0
for artifact in "$@"; do
  echo "== $(basename "$artifact")"
  for side in auto_gptq gptqmodel exact; do
    interpreter=$python
    [ $side != auto_gptq ] || interpreter=$old/bin/python
    "$interpreter" "$work/generate.py" $side "$artifact" "$work/$side.json" > "$work/log" 2>&1 ||
      { tail -n 20 "$work/log" >&2; exit 1; }
  done
  "$python" "$work/compare.py" "$work/auto_gptq.json" "$work/exact.json" || status=1
  "$python" "$work/compare.py" "$work/auto_gptq.json" "$work/gptqmodel.json" || true
done
exit $status
