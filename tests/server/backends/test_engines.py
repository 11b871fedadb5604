"""The torch engine on every artifact: greedy tokens are those of the same numbers in a plain model of transformers."""

import dataclasses
import sys
from pathlib import Path

import pytest
from support.collector import Collector, greedy
from support.commands import GPTQ_4, GPTQ_8, GPTQ_MIXED, PROMPTS, Artifacts
from support.models import Plain
from tokenizers import Tokenizer

from pangu_convert.artifact import ArtifactError, read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions, SamplingOptions

NUM_TOKENS = 24
TORCH = LoadOptions(device="cpu", threads=1, engine="torch")
INT8 = ("ctranslate2", "--quantization", "int8", "--no-smooth")
SOURCES = [
    ("tiny_starcoder", *INT8),
    ("tiny_qwen2", "ctranslate2", "--quantization", "int8_float16", "--no-smooth"),
    pytest.param(("smollm2", *INT8), marks=pytest.mark.real_model),
    GPTQ_4,
    GPTQ_8,
    GPTQ_MIXED,
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: "-".join(source[:2]))
def test_greedy_tokens_are_those_of_the_same_numbers(artifacts: Artifacts, source: tuple[str, ...]) -> None:
    path = artifacts(*source)
    artifact = read_artifact(path)
    end_ids = list(artifact.manifest.end_token_ids)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    plain = Plain(artifact)
    backend = load_backend(artifact, TORCH)
    assert backend.info.engine == "torch"
    alone = [greedy(backend, prompt, NUM_TOKENS, end_ids) for prompt in prompts]
    same = sum(plain.check(prompt, tokens, NUM_TOKENS) for prompt, tokens in zip(prompts, alone, strict=True))
    assert same > 0.8 * sum(map(len, alone))
    options = SamplingOptions(max_tokens=NUM_TOKENS, temperature=0, end_token_ids=tuple(end_ids))
    together = [Collector() for _ in prompts]
    for prompt, collector in zip(prompts, together, strict=True):
        backend.submit(prompt, options, collector)
    for tokens, collector in zip(alone, together, strict=True):
        assert collector.ended.wait(120)
        assert collector.tokens == tokens, "a row does not depend on its company"
    backend.close()


def test_what_runs_is_named_and_its_memory_counted(artifacts: Artifacts) -> None:
    backend = load_backend(read_artifact(artifacts(*GPTQ_4)), TORCH)
    info = backend.info
    backend.close()
    assert info.engine == "torch"
    assert info.kernel == "numba int16 x int4"
    assert info.compute_type.endswith("+ float32")


@pytest.mark.parametrize(
    "source", [("tiny_starcoder", *INT8), GPTQ_4], ids=lambda source: "-".join(source[:2])
)
def test_without_kernels_plain_matrices_are_multiplied(
    artifacts: Artifacts, source: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A platform without numba: slower and larger, the same tokens."""
    for name in ("cpu_linear", "cpu_attention", "cpu_norm"):
        monkeypatch.setitem(sys.modules, f"pangu_server.backends.torch.kernels.{name}", None)
    path = artifacts(*source)
    prompt = Tokenizer.from_file(str(path / "tokenizer.json")).encode(PROMPTS[0]).ids
    artifact = read_artifact(path)
    plain = Plain(artifact)
    backend = load_backend(artifact, TORCH)
    assert backend.info.kernel == "dequantized"
    assert greedy(backend, prompt, NUM_TOKENS, plain.end_ids) == plain.greedy(prompt, NUM_TOKENS)
    backend.close()


def test_a_cache_too_small_for_one_request_is_refused(artifacts: Artifacts) -> None:
    artifact = read_artifact(artifacts("tiny_starcoder", *INT8))
    with pytest.raises(ArtifactError, match="--cache-memory"):
        load_backend(artifact, dataclasses.replace(TORCH, cache_bytes=1000))


def test_a_damaged_artifact_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    source = artifacts(*GPTQ_4)
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    size_bytes = (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "model.safetensors").write_bytes(b"\0" * size_bytes)
    with pytest.raises(ArtifactError, match="damaged"):
        load_backend(read_artifact(tmp_path), TORCH)
