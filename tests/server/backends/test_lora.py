"""Adapters while their base is served: each request's greedy tokens are those that peft computes, in any company."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import as_plain, quiet, save_adapter
from support.collector import Collector
from support.reference import generated
from transformers import AutoModelForCausalLM

from pangu_convert.artifact import Artifact, ArtifactError, read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import Backend, LoadOptions, SamplingOptions
from pangu_training.stage.errors import PanguError

Converted = Callable[..., Path]
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt_bigcode": ["c_attn", "c_proj", "c_fc"]}
NEW_TOKENS = 16


def adapted(checkpoint: Path, adapter: Path | None) -> Any:
    """peft's own model, in float32."""
    from peft import LoraConfig, PeftModel

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if adapter is None:
        return model
    with quiet():
        return PeftModel.from_pretrained(model, adapter, config=as_plain(LoraConfig.from_pretrained(adapter)))


def submitted(backend: Backend, prompt: list[int], adapter: str | None) -> Collector:
    collector = Collector()
    options = SamplingOptions(max_tokens=NEW_TOKENS, temperature=0, adapter=adapter)
    backend.submit(prompt, options, collector)
    return collector


def tokens_of(collector: Collector) -> list[int]:
    assert collector.ended.wait(120)
    assert collector.error is None
    return collector.tokens


@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("format", ["transformers --dtype float32", "ctranslate2 --quantization int8"])
def test_each_request_has_its_own_adapter(
    model: str, format: str, converted: Converted, tmp_path: Path
) -> None:
    checkpoint, artifact = converted(model), read_artifact(converted(model, *format.split()))
    folders = {
        "one": save_adapter(checkpoint, tmp_path / "one", target_modules=TARGETS[model]),
        "other": save_adapter(
            checkpoint, tmp_path / "other", target_modules=TARGETS[model][:1], r=3, lora_alpha=40
        ),
    }
    backend = load_backend(artifact, LoadOptions(device="cpu", adapters=tuple(folders.items())))
    plain = load_backend(artifact, LoadOptions(device="cpu", engine="torch"))
    draw = random.Random(1)
    beginning = [
        draw.randrange(1, 250) for _ in range(40)
    ]  # more than two pages, which adapters must not share
    prompts = [beginning, [*beginning, 7], beginning[:5]]
    names = [None, "one", "other"]
    try:
        alone = {
            (name, at): tokens_of(submitted(backend, prompt, name))
            for name in names
            for at, prompt in enumerate(prompts)
        }
        company = {
            (name, at): submitted(backend, prompt, name)
            for at, prompt in enumerate(prompts)
            for name in names
        }
        assert {case: tokens_of(collector) for case, collector in company.items()} == alone
        for at, prompt in enumerate(prompts):
            assert alone[None, at] == tokens_of(submitted(plain, prompt, None)), "a base without adapters"
    finally:
        backend.close()
        plain.close()
    assert backend.info.weight_bytes > plain.info.weight_bytes
    assert alone["one", 0] != alone[None, 0] != alone["other", 0] != alone["one", 0]
    if format.startswith("transformers"):
        for name in names:
            reference = adapted(checkpoint, folders[name] if name else None)
            for at, prompt in enumerate(prompts):
                assert alone[name, at] == generated(reference, prompt, NEW_TOKENS), name


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a module in full": ({"modules_to_save": ["lm_head"]}, "lm_head"),
    "tokens": ({"trainable_token_indices": [3, 4]}, "rows of the embedding"),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    "an embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_pairs_is_refused(name: str, converted: Converted, tmp_path: Path) -> None:
    settings, words = REFUSED[name]
    adapter = save_adapter(
        converted("llama"), tmp_path / "adapter", **{"target_modules": ["q_proj"], **settings}
    )
    with pytest.raises(PanguError, match=rf"{words}.*pangu-convert import"):
        load(read_artifact(converted("llama", "transformers")), adapter)


def test_an_adapter_of_another_base_is_refused(
    converted: Converted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = read_artifact(converted("llama", "transformers"))
    adapter = save_adapter(converted("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    load(artifact, adapter).close()
    assert "unchecked" in caplog.text
    caplog.clear()
    for sha256 in (artifact.manifest.source.sha256, "0" * 64):
        (adapter / "training.json").write_text(json.dumps({"base": {"name": "llama", "sha256": sha256}}))
        if sha256 == "0" * 64:
            with pytest.raises(ArtifactError, match="was trained on llama"):
                load(artifact, adapter)
        else:
            load(artifact, adapter).close()
    assert "unchecked" not in caplog.text
    (adapter / "training.json").unlink()
    with pytest.raises(PanguError, match="give the adapter's own base"):
        load(read_artifact(converted("gpt_bigcode", "transformers")), adapter)


def test_ctranslate2_s_library_has_no_adapters(converted: Converted, tmp_path: Path) -> None:
    artifact = read_artifact(converted("llama", "ctranslate2", "--quantization", "int8"))
    with pytest.raises(ArtifactError, match="--lora needs the torch engine"):
        load_backend(artifact, LoadOptions(engine="ctranslate2", adapters=(("one", tmp_path),)))


def load(artifact: Artifact, adapter: Path) -> Backend:
    return load_backend(artifact, LoadOptions(device="cpu", adapters=(("one", adapter),)))
