"""Quantized models of others, adopted and served: greedy tokens are transformers' on the same numbers unquantized."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collector import greedy
from support.families import save_model
from support.packers import PACKINGS, save_packed
from support.reference import generated
from transformers import AutoModelForCausalLM

from pangu_convert import cli
from pangu_convert.artifact import read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions

NEW_TOKENS = 24
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "gptq, asymmetric", {}),
    ("llama", "awq, rows", {"attention_bias": True, "mlp_bias": True}),
    ("qwen2", "awq", {"tie_word_embeddings": True}),
    ("qwen2", "gptq_v2, asymmetric, act-order", {}),
    ("qwen3", "gptq, act-order", {}),
    ("qwen3", "awq, 32", {}),
    ("gemma2", "awq", {"sliding_window": 40}),
    ("phi3", "gptq, 8 bits", {}),
    ("starcoder2", "gptq_v2, asymmetric, 8 bits, rows", {"use_bias": True}),
]


@pytest.mark.parametrize(
    ("kind", "packing", "changes"), CASES, ids=[f"{kind} {name}" for kind, name, _ in CASES]
)
def test_greedy_tokens_are_those_of_the_plain_model(
    kind: str, packing: str, changes: dict[str, Any], tmp_path: Path, one_thread: None
) -> None:
    checkpoint = save_model(kind, tmp_path / "checkpoint", **changes)
    folder = save_packed(checkpoint, tmp_path / "packed", PACKINGS[packing])
    assert cli.main(["adopt", str(folder), "--output", str(tmp_path / "artifact")]) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "packed-plain", dtype=torch.float32).eval()
    backend = load_backend(read_artifact(tmp_path / "artifact"), LoadOptions(device="cpu", threads=1))
    choice = random.Random(0)
    for length in (3, 60):
        prompt = [choice.randrange(1, 250) for _ in range(length)]
        assert greedy(backend, prompt, NEW_TOKENS, ()) == generated(plain, prompt, NEW_TOKENS)
    assert backend.info.kernel is not None
    kernels = {"dequantized"} if packing == "awq, 32" else {f"numba int16 x int{PACKINGS[packing].bits}"}
    assert set(backend.info.kernel.split(", ")) == kernels
    backend.close()
