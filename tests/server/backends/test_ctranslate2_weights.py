"""CTranslate2's files read for the torch engine: the checkpoint's weights and config, and nothing misunderstood."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from support.commands import SMALL
from support.models import IDS, MODELS, assert_same_model, loaded, logits, rewritten
from transformers import AutoModelForCausalLM

from pangu_convert.artifact import CHECKPOINT_CONFIG, Artifact, ArtifactError, read_artifact
from pangu_convert.model_bin import read_model_bin
from pangu_server.backends.torch.quantized import Quantized
from pangu_server.backends.torch.weights import open_weights

Make = Callable[..., Path]
# What of a config has an influence on logits.
SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "n_inner",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_parameters",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "hidden_act",
    "activation_function",
    "attention_bias",
    "mlp_bias",
    "multi_query",
    "scale_attn_weights",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
)


def by_another_converter(artifact: Artifact) -> Artifact:
    """As it is without the checkpoint's config."""
    files = {name: file for name, file in artifact.manifest.files.items() if name != CHECKPOINT_CONFIG}
    assert len(files) < len(artifact.manifest.files)
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, files=files))


@pytest.mark.parametrize(
    ("model", "quantization"),
    [
        *((model, quantization) for model in MODELS for quantization in ("float32", "int8")),
        *(("llama", quantization) for quantization in ("bfloat16", "int16", "int8_float16")),
    ],
)
def test_a_ctranslate2_artifact_is_its_checkpoint_rounded(
    model: str, quantization: str, converted: Make
) -> None:
    smooth = ("--no-smooth",) if "int8" in quantization else ()
    artifact = read_artifact(converted(model, "ctranslate2", "--quantization", quantization, *smooth))
    expected = AutoModelForCausalLM.from_pretrained(converted(model))
    weights = open_weights(artifact)
    bare = by_another_converter(artifact)
    for config in (weights.config, open_weights(bare).config):
        for setting in SETTINGS:
            assert getattr(config, setting, None) == getattr(expected.config, setting, None), setting
    state = expected.state_dict()
    values = dict(weights)
    assert values.keys() == {name for name in state if name not in expected.all_tied_weights_keys}
    for name, value in values.items():
        exact = state[name]
        if isinstance(value, Quantized):
            assert (value.bits, value.order, value.scales.shape) == (8, None, (len(exact), 1))
            assert ((value.dense() - exact).abs() <= 0.5001 * value.scales).all(), name
        elif value.dtype == torch.float32 and quantization == "int16":
            assert (value - exact).abs().max() <= exact.abs().max() / 1024, name
        else:
            assert torch.equal(value, exact.to(value.dtype)), name
    matrices = {name for name, value in values.items() if isinstance(value, Quantized)}
    positions = {"transformer.wpe.weight"}
    all_matrices = {name for name, value in state.items() if value.dim() == 2 and name in values} - positions
    assert matrices == (all_matrices if "int8" in quantization else set())
    if quantization == "float32":
        assert_same_model(loaded(artifact), expected)
        assert_same_model(loaded(bare), expected)


@pytest.mark.parametrize("model", MODELS)
def test_a_smoothed_int8_artifact_gives_the_logits_of_ctranslate2_in_float32(
    model: str, converted: Make
) -> None:
    artifact = read_artifact(converted(model, "ctranslate2", "--quantization", "int8", *SMALL))
    generator = ctranslate2.Generator(
        str(artifact.path), device="cpu", compute_type="float32", intra_threads=1
    )
    expected = torch.from_numpy(np.array(generator.forward_batch([IDS])))[0]
    assert torch.allclose(logits(loaded(artifact)), expected, atol=2e-4)
    exact = logits(AutoModelForCausalLM.from_pretrained(converted(model)))
    assert (expected - exact).norm() / exact.norm() < 0.05


def test_nothing_of_an_int8_matrix_is_copied(converted: Make) -> None:
    weights = open_weights(read_artifact(converted("llama", "ctranslate2", "--no-smooth")))
    storages = {
        value.integers.untyped_storage().data_ptr() for _, value in weights if isinstance(value, Quantized)
    }
    assert len(storages) == 1  # the file's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-3], "is damaged or cut short"),
        (lambda data: data[: len(data) // 2], "is damaged or cut short"),
        (lambda data: data + b"\0", "is damaged or cut short"),
        (lambda data: b"\0" * len(data), "is of CTranslate2's format 0, this program reads 6"),
        (lambda data: data.replace(b"decoder/num_heads\0", b"decoder/num_hands\0"), "has no variable decoder/num_h"),
        (lambda data: data.replace(b"layer_1/ffn/linear_1", b"layer_1/ffn/linear_9"), "has no variable"),
        (lambda data: data.replace(b"decoder/layer_1/", b"decoder/layer_2/"), "has no variable"),
        (lambda data: data.replace(b"linear_0/weight_scale\0", b"linear_0/weight_stale\0"), "linear_0/weight of type"),
    ],
)  # fmt: skip
def test_a_damaged_model_bin_is_refused_in_one_line(
    converted: Make, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    artifact = rewritten(converted("llama", "ctranslate2", "--no-smooth"), tmp_path / "copy", change)
    with pytest.raises(ArtifactError, match=message) as refused:
        loaded(artifact)
    assert "\n" not in str(refused.value)


def test_what_no_model_of_the_architecture_has_is_refused(converted: Make, tmp_path: Path) -> None:
    source = converted("qwen2", "ctranslate2", "--no-smooth")
    offset = read_model_bin(source / "model.bin").variables["decoder/alibi"].offset

    def with_alibi(data: bytes) -> bytes:
        return data[:offset] + b"\1" + data[offset + 1 :]

    with pytest.raises(ArtifactError, match="decoder/alibi = 1, which the torch engine does not know"):
        open_weights(rewritten(source, tmp_path / "alibi", with_alibi))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("LlamaForCausalLM", "linear_0/bias, which the torch engine does not know"),
        ("GPTBigCodeForCausalLM", "has no variable decoder/position_encodings/encodings"),
        ("MistralForCausalLM", r"is a MistralForCausalLM without checkpoint_config\.json"),
    ],
)
def test_the_file_of_a_qwen2_is_no_other_model(converted: Make, architecture: str, message: str) -> None:
    artifact = by_another_converter(read_artifact(converted("qwen2", "ctranslate2", "--no-smooth")))
    manifest = dataclasses.replace(artifact.manifest, architecture=architecture)
    with pytest.raises(ArtifactError, match=message):
        open_weights(dataclasses.replace(artifact, manifest=manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 96}, r"has shape \[128, 64\], not \[96, 64\]"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rotary_base = 1000000"),
        ({"model_type": "llama"}, "names Qwen2ForCausalLM but describes a llama"),
        ({"model_type": 3}, "checkpoint_config.json is damaged .*describes no model"),
    ],
)
def test_the_config_of_another_model_is_refused(
    converted: Make, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    artifact = rewritten(
        converted("qwen2", "ctranslate2", "--no-smooth"), tmp_path / "copy", lambda data: data
    )
    file = artifact.path / CHECKPOINT_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ArtifactError, match=message):
        open_weights(artifact)
