"""A tiny random checkpoint of each architecture that is taken, by transformers' `model_type`."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from support.scripted import byte_tokenizer

CONTEXT_TOKENS = 256
WINDOW = {"sliding_window": 64}  # less than the prompts
HEADS = {"head_dim": 16}
NO_GROUPS = {"num_key_value_heads": None}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {  # keys and queries of 24 numbers, values of 16
    **EXPERTS,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
MODELS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "cohere": {},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": {**DEEPSEEK, "q_lora_rank": 32, "topk_group": 1, "n_group": 1},
    "ernie4_5": {},
    "exaone4": {**WINDOW, "sliding_window_pattern": 2},
    "gemma": HEADS,
    "gemma2": {**HEADS, **WINDOW, "query_pre_attn_scalar": 16},
    "glm4": HEADS,
    "glm4_moe": {
        **EXPERTS,
        **HEADS,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "topk_group": 1,
        "n_group": 1,
    },
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "granite": {
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 2.0,
    },
    "granitemoe": {**EXPERTS, "num_local_experts": 4},
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "llama": {},
    "mistral": WINDOW,
    "mixtral": {**EXPERTS, **WINDOW, "num_local_experts": 4},
    "nemotron": HEADS,
    "olmo": {},
    "olmo2": {},
    "olmoe": {**EXPERTS, "num_experts": 4},
    "persimmon": NO_GROUPS,
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 64},
    "qwen3": HEADS,
    "qwen3_moe": {**EXPERTS, **HEADS, "num_experts": 4},
    "seed_oss": HEADS,
    "smollm3": {},
    "stablelm": {},
    "starcoder2": WINDOW,
}


def model_config(kind: str, **changes: Any) -> Any:
    """A config of two layers."""
    fields = {
        "vocab_size": byte_tokenizer().get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **MODELS.get(kind, {}),
        **changes,
    }
    return AutoConfig.for_model(kind, **{name: value for name, value in fields.items() if value is not None})


def save_model(kind: str, folder: Path, **changes: Any) -> Path:
    """A random checkpoint in float32."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(model_config(kind, **changes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # so that greedy tokens do not depend on the last bit of a logit
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))  # so that none is left out unseen
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    end = tokenizer.id_to_token(0)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    return folder


def architecture_of(kind: str) -> str:
    """The model class of this `model_type`."""
    return str(AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(kind))].__name__)
