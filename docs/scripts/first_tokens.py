"""The first token in each hole: CTranslate2 artifacts against their source, a transformers artifact, in float32.

    python docs/scripts/first_tokens.py SOURCE SingleLineInfilling.jsonl.gz ARTIFACT... [--compute-type float32]

Every tenth row of the file is a prompt. Prints how many first tokens are the same, and the KL divergence in nats.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pangu_convert.infilling import fim_tokens


def main() -> None:
    """Compare each artifact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("infilling", type=Path)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--compute-type", default="int8", help="float32: weights rounded, activations not")
    arguments = parser.parse_args()
    with gzip.open(arguments.infilling, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][::10]
    tokenizer = Tokenizer.from_file(str(arguments.source / "tokenizer.json"))
    prompts = [prompt(tokenizer, row) for row in rows]
    model = AutoModelForCausalLM.from_pretrained(arguments.source, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1] for ids in prompts]
    expected = torch.stack(logits).log_softmax(-1)
    for artifact in arguments.artifacts:
        generator = ctranslate2.Generator(str(artifact), compute_type=arguments.compute_type)
        found = torch.stack([last_log_probs(generator, ids) for ids in prompts])
        divergence = (expected.exp() * (expected - found[:, : expected.shape[1]])).sum(-1)
        same = int((expected.argmax(-1) == found.argmax(-1)).sum())
        print(
            f"{artifact}: {same} of {len(prompts)} the same, KL mean {divergence.mean():.4f}, "
            f"median {divergence.median():.4f}, largest {divergence.max():.2f}",
            flush=True,
        )


def prompt(tokenizer: Tokenizer, row: dict[str, Any]) -> list[int]:
    """The code before and after the hole, in token ids."""
    tokens = fim_tokens(tokenizer)
    if tokens is None:
        raise SystemExit("the tokenizer has no FIM tokens")
    before, after = (
        tokenizer.encode(row[part], add_special_tokens=False).ids for part in ("prompt", "suffix")
    )
    return [tokens.prefix, *before, tokens.suffix, *after, tokens.middle]


def last_log_probs(generator: ctranslate2.Generator, ids: list[int]) -> torch.Tensor:
    """[vocabulary], of the token that follows."""
    output = generator.forward_batch([ids], return_log_probs=True)
    return torch.from_numpy(np.array(output.to(ctranslate2.DataType.float32))[0, -1].copy())


if __name__ == "__main__":
    main()
