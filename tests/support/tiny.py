"""Tiny checkpoints with random weights, made in seconds. They show shape and parity, never quality."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPTBigCodeConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

# Wide enough that greedy tokens do not depend on the last bit of a logit.
INITIALIZER_RANGE = 0.15


def tiny_config(architecture: str, vocabulary_size: int, **changes: Any) -> PretrainedConfig:
    """A two-layer config of `gpt_bigcode`, `llama` or `qwen2`."""
    shared = {
        "vocab_size": vocabulary_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": INITIALIZER_RANGE,
    }
    if architecture == "gpt_bigcode":
        sizes: dict[str, Any] = {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 256}
        return GPTBigCodeConfig(**{**shared, **sizes, "multi_query": True, **changes})
    sizes = {
        "max_position_embeddings": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
    config_class = {"llama": LlamaConfig, "qwen2": Qwen2Config}[architecture]
    return config_class(**{**shared, **sizes, **changes})


def save_tiny(folder: Path, tokenizer: Tokenizer, architecture: str, **changes: Any) -> Path:
    """Save a random model (seed 0, float32) with `tokenizer`, whose token 0 is the end of text."""
    torch.manual_seed(0)
    config = tiny_config(architecture, tokenizer.get_vocab_size(), **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Sampling defaults of a checkpoint, as Qwen's has them, must not reach requests that did not ask for them.
    model.generation_config.repetition_penalty = 3.0
    model.save_pretrained(folder)
    end = tokenizer.id_to_token(0)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    return folder
