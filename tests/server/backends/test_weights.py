"""Weights by transformers' names: the model is the one that transformers loads, or one line says why there is none."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import GPTQ_4, Artifacts, pangu_convert
from support.damage import DAMAGES, WEIGHTS, Tensors
from support.models import MODELS, assert_same_model, changed, loaded, rewritten
from transformers import AutoModelForCausalLM

from pangu_convert.artifact import ArtifactError, read_artifact
from pangu_convert.model_bin import read_model_bin
from pangu_server.backends.torch.placing import build, complete, place
from pangu_server.backends.torch.weights import open_weights

Make = Callable[..., Path]
NORM = "model.norm.weight"


@pytest.mark.parametrize("model", MODELS)
def test_an_unquantized_artifact_is_what_transformers_loads(model: str, converted: Make) -> None:
    artifact = read_artifact(converted(model, "transformers"))
    assert_same_model(loaded(artifact), AutoModelForCausalLM.from_pretrained(artifact.path))


def test_shards_and_another_type_are_loaded(tmp_path: Path, converted: Make) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted("llama"))
    shutil.copytree(converted("llama"), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size="40KB")
    pangu_convert(
        "transformers", tmp_path / "checkpoint", "--output", tmp_path / "out", "--dtype", "bfloat16"
    )
    artifact = read_artifact(tmp_path / "out")
    assert len(artifact.manifest.weight_files) > 2
    expected = AutoModelForCausalLM.from_pretrained(artifact.path, dtype="auto")
    assert_same_model(loaded(artifact, open_weights(artifact).dtype), expected)


@pytest.mark.parametrize("differ", [False, True])
def test_a_tied_embedding_that_is_there_twice_is_loaded_as_transformers_does(
    tmp_path: Path, converted: Make, differ: bool
) -> None:
    def write_both(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + differ

    artifact = changed(converted("qwen2_tied", "transformers"), tmp_path / "copy", write_both)
    weights = open_weights(artifact)
    assert weights.config.tie_word_embeddings is not differ
    assert ("lm_head.weight" in dict(weights)) is differ
    assert_same_model(loaded(artifact), AutoModelForCausalLM.from_pretrained(artifact.path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), "has no tensor model.norm.weight"),
        (lambda weights: weights.update(more=weights[NORM] + 1), "has a tensor more, which LlamaForCausalLM"),
        (
            lambda weights: weights.update({NORM: torch.ones(9)}),
            r"model.norm.weight .* has shape \[9\], not the \[64\]",
        ),
    ],
    ids=["missing", "superfluous", "of another shape"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    converted: Make, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    artifact = changed(converted("llama", "transformers"), tmp_path / "copy", change)
    with pytest.raises(ArtifactError, match=message):
        loaded(artifact)


def test_frequencies_that_older_versions_stored_are_passed_over(converted: Make, tmp_path: Path) -> None:
    def store(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    artifact = changed(converted("llama", "transformers"), tmp_path / "copy", store)
    assert_same_model(loaded(artifact), AutoModelForCausalLM.from_pretrained(converted("llama")))


def test_a_parameter_that_was_not_put_in_place_is_named(converted: Make) -> None:
    weights = open_weights(read_artifact(converted("llama", "transformers")))
    model = build(weights.config, "LlamaForCausalLM")
    for name, value in weights:
        if name != NORM:
            assert isinstance(value, torch.Tensor)
            place(model, name, value, "cpu", torch.float32)
    with pytest.raises(ArtifactError, match=rf"was left without {NORM}"):
        complete(model, "cpu")


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("Qwen2ForCausalLM", {}, "the artifact names Qwen2ForCausalLM but describes a llama"),
        ("LlamaForCausalMl", {}, "the artifact names LlamaForCausalMl"),
        (
            "LlamaForCausalLM",
            {"hidden_act": "gulp"},
            "the artifact does not describe a LlamaForCausalLM .*gulp",
        ),
        ("LlamaForCausalLM", {"num_attention_heads": 5}, "config.json is damaged"),
    ],
)
def test_a_config_of_no_such_model_is_refused(
    converted: Make, tmp_path: Path, architecture: str, changes: dict[str, object], message: str
) -> None:
    artifact = changed(converted("llama", "transformers"), tmp_path / "copy", lambda weights: None)
    manifest = dataclasses.replace(artifact.manifest, architecture=architecture)
    config = artifact.path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(ArtifactError, match=message):
        open_weights(dataclasses.replace(artifact, manifest=manifest))


def test_modules_that_took_a_parameter_s_place_are_left_alone(converted: Make) -> None:
    weights = open_weights(read_artifact(converted("qwen2_tied", "transformers")))
    model = build(weights.config, "Qwen2ForCausalLM")
    ours = torch.nn.Module()
    ours.register_buffer("packed", torch.arange(3), persistent=False)
    model.set_submodule("model.embed_tokens", ours)
    model.set_submodule("lm_head", ours)
    for name, value in weights:
        if "embed_tokens" not in name:
            assert isinstance(value, torch.Tensor)
            place(model, name, value, "cpu", torch.float32)
    complete(model, "cpu")
    assert ours.packed.tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("model", ["gpt_bigcode", "llama_biased"])
def test_damage_to_any_tensor_is_refused_by_its_name(
    model: str, damage: Callable[..., None], converted: Make, tmp_path: Path
) -> None:
    """As at conversion: an artifact whose hashes are not checked may hold anything."""
    source = read_artifact(converted(model, "transformers"))
    for number, name in enumerate(load_file(source.path / WEIGHTS)):
        artifact = changed(source.path, tmp_path / str(number), partial(damage, name=name))
        with pytest.raises(ArtifactError) as caught:
            list(open_weights(artifact))
        assert name in str(caught.value)


@pytest.mark.parametrize("format", ["gptq", "ctranslate2"])
def test_a_scale_that_is_no_number_is_refused_by_its_name(
    format: str, artifacts: Artifacts, tmp_path: Path
) -> None:
    if format == "gptq":
        layer = "transformer.h.1.mlp.c_fc"

        def broken(tensors: Tensors) -> None:
            tensors[f"{layer}.scales"][0, 0] = float("nan")

        artifact = changed(artifacts(*GPTQ_4), tmp_path / "copy", broken)
    else:
        layer = "transformer.wte"
        source = artifacts("tiny_bytes", "ctranslate2", "--no-smooth")
        at = read_model_bin(source / "model.bin").variable("decoder/embeddings/weight_scale").offset
        nan = torch.full((1,), float("nan")).numpy().tobytes()
        artifact = rewritten(source, tmp_path / "copy", lambda data: data[:at] + nan + data[at + len(nan) :])
    with pytest.raises(ArtifactError, match=rf"{layer}\.weight in .* holds NaN"):
        list(open_weights(artifact))
