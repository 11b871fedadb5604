"""LoRA adapters made by peft with random numbers, and what peft makes of them."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

State = dict[str, torch.Tensor]


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


def merged_by_peft(checkpoint: Path, adapter: Path) -> State:
    """All weights after peft's own merge, in float32."""
    from peft import LoraConfig, PeftModel

    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with quiet():
        config = as_plain(LoraConfig.from_pretrained(adapter))
        merged = PeftModel.from_pretrained(base, adapter, config=config).merge_and_unload()
    state: State = merged.state_dict()
    return state


def as_plain(config: Any) -> Any:
    """Have peft take layers for what they are: it would look for quantized ones, and import gptqmodel for that."""
    from peft.tuners.lora import Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    config._register_custom_module({torch.nn.Linear: Linear, Conv1D: Linear, torch.nn.Embedding: Embedding})
    return config
