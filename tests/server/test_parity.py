"""The property that holds everywhere: greedy tokens of the server = of the backend = of transformers."""

from pathlib import Path

import ctranslate2
import pytest
import torch
from starlette.testclient import TestClient
from support.collector import Collector, greedy
from support.commands import PROMPTS, Artifacts
from support.reference import generated
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pangu_convert.artifact import read_artifact
from pangu_convert.ctranslate2 import QUANTIZATIONS
from pangu_server.app import create_app
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions, SamplingOptions
from pangu_server.engine import Engine
from pangu_server.metrics import Metrics

NUM_TOKENS = 24
FLOAT32 = {
    "ctranslate2": ("ctranslate2", "--quantization", "float32"),
    "transformers": ("transformers", "--dtype", "float32"),
}
CHECKPOINTS = ["tiny_starcoder", pytest.param("smollm2", marks=pytest.mark.real_model)]


def transformers_greedy(checkpoint: Path, prompts: list[list[int]], end_ids: list[int]) -> list[list[int]]:
    """Greedy tokens in float32, the end token included."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return [generated(model, prompt_ids, NUM_TOKENS, end_ids) for prompt_ids in prompts]


@pytest.fixture(scope="module")
def answers() -> dict[str, list[list[int]]]:
    """What transformers says, by checkpoint: once for all formats."""
    return {}


@pytest.mark.parametrize("format", FLOAT32)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_greedy_tokens_equal_transformers(
    checkpoint: str,
    format: str,
    artifacts: Artifacts,
    answers: dict[str, list[list[int]]],
    request: pytest.FixtureRequest,
) -> None:
    artifact = read_artifact(artifacts(checkpoint, *FLOAT32[format]))
    end_ids = list(artifact.manifest.end_token_ids)
    tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    if checkpoint not in answers:
        answers[checkpoint] = transformers_greedy(request.getfixturevalue(checkpoint), prompts, end_ids)
    expected = answers[checkpoint]
    assert len({tuple(tokens) for tokens in expected}) > 1, "the prompts must make a difference"

    backend = load_backend(artifact, LoadOptions(device="cpu", threads=1))
    assert backend.info.compute_type == "float32"
    for prompt_ids, tokens in zip(prompts, expected, strict=True):
        assert greedy(backend, prompt_ids, NUM_TOKENS, end_ids) == tokens
    options = SamplingOptions(max_tokens=NUM_TOKENS, temperature=0, end_token_ids=tuple(end_ids))
    together = [Collector() for _ in prompts]
    for prompt_ids, collector in zip(prompts, together, strict=True):
        backend.submit(prompt_ids, options, collector)
    for collector, tokens in zip(together, expected, strict=True):
        assert collector.ended.wait(120)
        assert collector.tokens == tokens

    metrics = Metrics(artifact.manifest.name)
    engine = Engine(artifact, tokenizer, metrics)
    engine.load(backend)
    client = TestClient(create_app(engine))
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
        answer = client.post("/v1/completions", json=body).json()
        assert answer["choices"][0]["text"] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer["usage"]["completion_tokens"] == len(tokens)
    engine.close()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_ctranslate2_type_loads_and_says_what_it_computes_in(
    quantization: str, artifacts: Artifacts
) -> None:
    plain = ("--no-smooth",) if quantization.startswith("int8") else ()
    made = artifacts("tiny_starcoder", "ctranslate2", "--quantization", quantization, *plain)
    artifact = read_artifact(made)
    backend = load_backend(artifact, LoadOptions(device="cpu", threads=1, engine="ctranslate2"))
    effective = backend.info.compute_type
    tokens = greedy(backend, [589, 1459, 81], 8, [0])
    backend.close()
    assert len(tokens) == 8 or tokens[-1] == 0
    supported = ctranslate2.get_supported_compute_types("cpu")
    assert effective in supported, "what really runs, not what was asked for"
    if quantization in supported and quantization != "int8":  # int8 says nothing of the rest
        assert effective == quantization
