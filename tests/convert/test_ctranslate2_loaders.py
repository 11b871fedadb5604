"""What a config can set is in CTranslate2's files, or it is refused: nothing is dropped without a word."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from ctranslate2.converters import transformers as loaders
from support.families import architecture_of, model_config, save_model
from transformers import AutoModelForCausalLM

from pangu_convert.ctranslate2 import write_ctranslate2
from pangu_convert.ctranslate2_loaders import LOADERS
from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.errors import CheckpointError

KINDS = (
    "gemma",
    "gpt_bigcode",
    "llama",
    "mistral",
    "phi",
    "qwen2",
    "qwen3",
    "seed_oss",
    "stablelm",
    "starcoder2",
)
ROPE = {"rope_type": "default", "rope_theta": 500.0}
SETTINGS: list[dict[str, Any]] = [
    {"activation_function": "gelu"},
    {"attention_bias": True},
    {"head_dim": 32},
    {"hidden_act": "gelu"},
    {"hidden_act": "relu"},
    {"hidden_activation": "gelu"},
    {"layer_norm_eps": 1e-2},
    {"layer_norm_epsilon": 1e-2},
    {"mlp_bias": True},
    {"norm_epsilon": 1e-2},
    {"num_key_value_heads": 4},
    {"qk_layernorm": True},
    {"rms_norm_eps": 1e-2},
    {"rope_parameters": ROPE},
    {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}},
    {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}},
    {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 2.0}},
    {"rope_parameters": {**ROPE, "rope_theta": 10000.0}, "partial_rotary_factor": 0.5},
    {"scale_attn_weights": False},
    {"sliding_window": 16},
    {"tie_word_embeddings": True},
    {"use_bias": False},
    {"use_parallel_residual": True},
    {"use_qkv_bias": True},
    {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
]
IDS = [5, 120, 7, 99, 200, 31, 64, 150, 3, 77]


@pytest.fixture(autouse=True)
def no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """CTranslate2's loaders collect garbage after each layer: most of the time of a tiny conversion."""
    monkeypatch.setattr(loaders.gc, "collect", lambda: 0)


def test_the_kinds_are_those_of_the_loaders() -> None:
    assert {architecture_of(kind) for kind in KINDS} == set(LOADERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_is_carried_or_refused(kind: str, tmp_path: Path) -> None:
    carried = 0
    for number, setting in enumerate(copy.deepcopy(SETTINGS)):  # transformers writes into them
        if not setting.keys() <= model_config(kind).to_dict().keys() | {"partial_rotary_factor"}:
            continue
        checkpoint = save_model(kind, tmp_path / f"checkpoint-{number}", **setting)
        folder = tmp_path / f"{number}"
        folder.mkdir()
        with contextlib.suppress(CheckpointError):
            write_ctranslate2(read_checkpoint(checkpoint), folder, "float32")
            library = ctranslate2.Generator(
                str(folder), device="cpu", compute_type="float32", intra_threads=1
            )
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
            with torch.inference_mode():
                expected = model(torch.tensor([IDS])).logits[0].numpy()
            found = np.array(library.forward_batch([IDS]))[0]
            assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), setting
            carried += 1
    assert carried >= 3
