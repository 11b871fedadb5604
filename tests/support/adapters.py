"""LoRA adapters made by peft with random numbers, and what peft and our import make of them."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pangu_convert import cli
from support.damage import Tensors

CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
TWO = {"target_modules": ["q_proj", "down_proj"]}
Q = {"target_modules": ["q_proj"]}
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("qwen2_tied", TWO),
    "all linear layers": ("llama", {"target_modules": "all-linear"}),
    "all of GPTBigCode": ("gpt_bigcode", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "a pattern": ("llama", {"target_modules": r".*\.(q|k)_proj"}),
    "ranks and alphas by name": (
        "llama",
        {
            **TWO,
            "use_rslora": True,
            "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 7},
            "alpha_pattern": {"q_proj": 11.5},
        },
    ),
    "a rank by a pattern": ("llama", {**Q, "rank_pattern": {r"^model\.layers\.0\..*q_proj": 3, "q_proj": 5}}),
    "a layer": ("llama", {**Q, "layers_to_transform": [1]}),
    "a layer by its list's name": ("llama", {**Q, "layers_to_transform": 0, "layers_pattern": "layers"}),
    "all but one": ("llama", {**TWO, "exclude_modules": ["layers.0.self_attn.q_proj"]}),
    "modules in full": ("llama", {**Q, "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "a bias of B": ("llama_biased", {**Q, "lora_bias": True}),
    "tokens": ("llama", {**Q, "trainable_token_indices": [3, 200, 7]}),
    "tokens of a tied embedding": ("qwen2_tied", {**Q, "trainable_token_indices": [3, 200, 7]}),
    "tokens of an embedding by its name": (
        "gpt_bigcode",
        {"target_modules": ["c_fc"], "trainable_token_indices": {"wte": [1]}},
    ),
    "an embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "the head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What peft warns of, some tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_adapter(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """An adapter of the checkpoint in which every trained number is drawn, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings})
    with quiet():
        model = get_peft_model(base, as_plain(config))
        generator = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder)
    return folder


def merged_by_peft(checkpoint: Path, adapter: Path) -> Tensors:
    """All weights after peft's own merge, in float32."""
    from peft import LoraConfig, PeftModel

    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with quiet():
        config = as_plain(LoraConfig.from_pretrained(adapter))
        merged = PeftModel.from_pretrained(base, adapter, config=config).merge_and_unload()
    state: Tensors = merged.state_dict()
    return state


def as_plain(config: Any) -> Any:
    """Have peft take layers for what they are: it would look for quantized ones, and import gptqmodel for that."""
    from peft.tuners.lora import Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    config._register_custom_module({torch.nn.Linear: Linear, Conv1D: Linear, torch.nn.Embedding: Embedding})
    return config


def imported(source: object, output: Path, *arguments: object) -> Tensors:
    """Import an adapter: the merged weights."""
    assert cli.main(["import", str(source), "--output", str(output), *map(str, arguments)]) == 0
    return weights_of(output)


def weights_of(folder: Path) -> Tensors:
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


def refused(capsys: pytest.CaptureFixture[str], source: Path, output: Path, *arguments: object) -> str:
    """The line with which an import ends, which leaves nothing."""
    capsys.readouterr()
    assert cli.main(["import", str(source), "--output", str(output), *map(str, arguments)]) == 2
    assert not output.exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("pangu-convert: error: ")
    return error


def same(found: Tensors, expected: Tensors) -> bool:
    return all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def set_config(adapter: Path, **settings: object) -> Path:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, **settings}))
    return adapter
