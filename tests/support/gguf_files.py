"""Tiny GGUF files, written by the `gguf` package from checkpoints as llama.cpp's converter would."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from safetensors.torch import load_file
from tokenizers import Tokenizer

# Longest first where one name contains another.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers.": "blk.",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "transformer.h.": "blk.",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
NORMAL, CONTROL = 1, 3
KINDS = {
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    str: GGUFValueType.STRING,
}


@dataclass
class Content:
    """What is written: change it to make a file that is wrong in one way."""

    keys: dict[str, Any]
    tensors: dict[str, np.ndarray[Any, Any]]
    types: dict[str, GGMLQuantizationType] = field(default_factory=dict)

    def write(self, path: Path, *, tensors_per_part: int = 0) -> Path:
        """Write one file, or parts named by the writer; returns the (first) file."""
        architecture = self.keys["general.architecture"]
        writer = GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
        for name, value in self.keys.items():
            if isinstance(value, list):
                writer.add_array(name, value)
            elif name != "general.architecture":  # the writer has put it first
                writer.add_key_value(name, value, KINDS[type(value)])
        for name, data in self.tensors.items():
            kind = self.types.get(name, GGMLQuantizationType.F32)
            writer.add_tensor(name, quants.quantize(data, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path if path.exists() else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))

    def quantized(self, kind: GGMLQuantizationType) -> "Content":
        """The same with all matrices of another type."""
        return Content(
            self.keys, self.tensors, {name: kind for name, data in self.tensors.items() if data.ndim > 1}
        )


def gguf_content(checkpoint: Path, architecture: str, *, pre: str = "qwen2") -> Content:
    """What llama.cpp's converter makes of a checkpoint with a byte-level tokenizer."""
    config = json.loads((checkpoint / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    size, control = tokenizer.get_vocab_size(), tokenizer.get_added_tokens_decoder()
    texts = [tokenizer.id_to_token(token_id) for token_id in range(size)]
    keys = {
        "general.architecture": architecture,
        "general.name": "Tiny",
        "general.file_type": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [
            *texts,
            *(f"[PAD{token_id}]" for token_id in range(size, config["vocab_size"])),
        ],
        "tokenizer.ggml.token_type": [
            CONTROL if token_id in control else NORMAL for token_id in range(config["vocab_size"])
        ],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        **{f"{architecture}.{name}": value for name, value in _sizes(config).items()},
    }
    tensors = {
        _renamed(name): tensor.numpy() for name, tensor in load_file(checkpoint / "model.safetensors").items()
    }
    if architecture == "llama":
        for name, data in tensors.items():
            heads = {".attn_q.": "num_attention_heads", ".attn_k.": "num_key_value_heads"}
            for part, count in heads.items():
                if part in name:
                    tensors[name] = _permuted(data, config[count])
    return Content(keys, tensors)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["model_type"] == "gpt_bigcode":
        return {
            "block_count": config["n_layer"],
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "feed_forward_length": config["n_inner"],
            "attention.head_count": config["n_head"],
            "attention.head_count_kv": 1,
            "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        }
    return {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_parameters"]["rope_theta"],
    }


def _renamed(name: str) -> str:
    for original, renamed in NAMES.items():
        name = name.replace(original, renamed)
    return name


def _permuted(data: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's order of a query's or key's rows: the pairs that RoPE turns, next to each other."""
    halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(data.shape))
