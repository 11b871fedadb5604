"""Tiny models of every supported architecture, and what their artifacts must load as."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pangu_convert.artifact import Artifact, read_artifact
from pangu_server.backends.torch.placing import build, complete, place
from pangu_server.backends.torch.quantized import Quantized
from pangu_server.backends.torch.weights import open_weights
from support import families
from support.reference import generated
from support.scripted import byte_tokenizer
from support.tiny import save_tiny

LINEAR = {"rope_type": "linear", "factor": 2.7, "rope_theta": 10000.0}  # no float32 is 2.7
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
BIASED = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "tie_word_embeddings": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_bigcode_untied": ("gpt_bigcode", {"tie_word_embeddings": False, "activation_function": "gelu"}),
    "llama": ("llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "llama_biased": ("llama", {"rope_parameters": LINEAR, **BIASED}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
}
IDS = [5, 120, 7, 99, 200, 31, 64, 150, 3, 77]


def save_model(checkpoint: Path, model: str) -> Path:
    """The checkpoint of `MODELS[model]`: the first layer's biases and norms are drawn, the second's stay 0 and 1.

    Or of a family, see `support.families`.
    """
    if model not in MODELS:
        return families.save_model(model, checkpoint)
    architecture, changes = MODELS[model]
    save_tiny(checkpoint, byte_tokenizer(), architecture, **changes)
    weights = load_file(checkpoint / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if weight.dim() == 1 and ".1." not in name:
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    return checkpoint


def loaded(artifact: Artifact, dtype: torch.dtype = torch.float32) -> Any:
    """The model with plain matrices."""
    weights = open_weights(artifact)
    model = build(weights.config, artifact.manifest.architecture)
    for name, value in weights:
        place(model, name, value.dense() if isinstance(value, Quantized) else value, "cpu", dtype)
    complete(model, "cpu")
    return model


class Plain:
    """An artifact's numbers as plain matrices in single precision, in transformers' own model."""

    def __init__(self, artifact: Artifact, *, ends: bool = True) -> None:
        self.model = loaded(artifact)
        self.end_ids = list(artifact.manifest.end_token_ids) if ends else []

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """transformers' own generation of up to `count` tokens."""
        return generated(self.model, prompt, count, self.end_ids)

    def check(self, prompt: list[int], tokens: list[int], count: int) -> int:
        """How many of `tokens`, up to `count`, are the plain model's; they part at most where two are as good.

        The kernel rounds activations to 16 bits: some 1e-5 of a block's largest.
        """
        expected = self.greedy(prompt, count)
        for index, (token, other) in enumerate(zip(tokens, expected, strict=False)):
            if token != other:
                with torch.inference_mode():
                    logits = self.model(torch.tensor([prompt + expected[:index]])).logits[0, -1]
                assert logits[other] - logits[token] < 2e-3 * logits.std()
                return index
        assert len(tokens) == len(expected)
        return len(tokens)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(torch.tensor([IDS])).logits[0]
    return result


def assert_same_model(found: Any, expected: Any) -> None:
    """Bit for bit, computed buffers too."""
    for tensors in ("state_dict", "named_buffers"):
        ours, theirs = (dict(getattr(model, tensors)()) for model in (found, expected))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(logits(found), logits(expected))
    tied = [
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
        for model in (found, expected)
    ]
    assert tied[0] == tied[1]


def changed(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Artifact:
    """A copy with other tensors in its safetensors file; its manifest is the old one."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return Artifact(path=folder, manifest=read_artifact(source).manifest)


def rewritten(source: Path, folder: Path, change: Callable[[bytes], bytes]) -> Artifact:
    """A copy with other bytes in `model.bin`; its manifest is the old one."""
    shutil.copytree(source, folder)
    data = change((source / "model.bin").read_bytes())
    (folder / "model.bin").write_bytes(data)
    return Artifact(path=folder, manifest=read_artifact(source).manifest)
