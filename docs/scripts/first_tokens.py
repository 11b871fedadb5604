"""The first token in each hole: CTranslate2 artifacts against their source, a transformers artifact, in float32.

    python docs/scripts/first_tokens.py SOURCE SingleLineInfilling.jsonl.gz ARTIFACT... [--compute-type float32]

Every tenth row of the file is a prompt. Prints how many first tokens are the same, and the KL divergence in nats.
"""

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from pangu_convert.infilling import fim_tokens
from pangu_convert.scoring import CTranslate2Scorer, Scorer, load_source


def main() -> None:
    """Compare each artifact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("infilling", type=Path)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--compute-type", default="default", help="float32: weights rounded, activations not")
    arguments = parser.parse_args()
    with gzip.open(arguments.infilling, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][::10]
    tokenizer = Tokenizer.from_file(str(arguments.source / "tokenizer.json"))
    prompts = [prompt(tokenizer, row) for row in rows]
    expected = first_tokens(load_source(arguments.source), prompts)
    for artifact in arguments.artifacts:
        scorer = CTranslate2Scorer(artifact, len(os.sched_getaffinity(0)), arguments.compute_type)
        found = first_tokens(scorer, prompts)[:, : expected.shape[1]]
        divergence = (expected.exp() * (expected - found)).sum(-1)
        same = int((expected.argmax(-1) == found.argmax(-1)).sum())
        print(
            f"{artifact}: {same} of {len(prompts)} the same, KL mean {divergence.mean():.4f}, "
            f"median {divergence.median():.4f}, largest {divergence.max():.2f}",
            flush=True,
        )


def first_tokens(scorer: Scorer, prompts: list[tuple[int, ...]]) -> torch.Tensor:
    """Log-probabilities [prompts, vocabulary] of the token that follows each."""
    return torch.stack([scorer.log_probabilities(ids)[-1].clone() for ids in prompts])


def prompt(tokenizer: Tokenizer, row: dict[str, Any]) -> tuple[int, ...]:
    """The code before and after the hole, in token ids."""
    tokens = fim_tokens(tokenizer)
    if tokens is None:
        raise SystemExit("the tokenizer has no FIM tokens")
    before, after = (
        tokenizer.encode(row[part], add_special_tokens=False).ids for part in ("prompt", "suffix")
    )
    return tokens.prompt(before, after)


if __name__ == "__main__":
    main()
