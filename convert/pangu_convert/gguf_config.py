"""transformers' config of the model in a GGUF file."""

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pangu_convert.gguf_file import GgufFile
from pangu_convert.gguf_keys import MAX_SIZE, GgufKeys
from pangu_training.stage.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

ROPE_FACTORS = "rope_freqs.weight"
# Llama 3's own; only their ratios to the original context length matter.
LLAMA3_FREQUENCIES = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def read_config(
    file: GgufFile, keys: GgufKeys, architecture: str, vocabulary_size: int
) -> "PretrainedConfig":
    """The config of a file of one of `GGUF_ARCHITECTURES`.

    Raises:
        CheckpointError: a key is missing, out of range, or asks for something that transformers cannot be told.
    """
    if keys.size(f"{architecture}.vocab_size", vocabulary_size) != vocabulary_size:
        raise CheckpointError(
            f"{keys.name}: {architecture}.vocab_size is not the {vocabulary_size} of its vocabulary"
        )
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    layers = keys.size(f"{architecture}.block_count")
    if layers != len(blocks):
        raise CheckpointError(
            f"{keys.name}: {architecture}.block_count is {layers}, but it has {len(blocks)} blocks"
        )
    # What these models do not have, spelt out by some writers.
    keys.neutral(f"{architecture}.expert_count", 0)
    keys.neutral(f"{architecture}.expert_used_count", 0)
    keys.neutral(f"{architecture}.attention.causal", True)
    keys.neutral(f"{architecture}.attention.sliding_window", 0)
    keys.neutral(f"{architecture}.attention.clamp_kqv", 0.0)
    keys.neutral(f"{architecture}.attention.max_alibi_bias", 0.0)
    keys.neutral(f"{architecture}.use_parallel_residual", architecture == "starcoder")
    keys.neutral(f"{architecture}.tensor_data_layout", "Meta AI original pth", "reference")
    with understood(keys.name):
        if architecture == "starcoder":
            return _bigcode(keys, layers, vocabulary_size)
        return _llama_like(file, keys, architecture, layers, vocabulary_size)


@contextlib.contextmanager
def understood(name: str) -> Iterator[None]:
    """transformers' own refusal of a config, as a line about the file."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{name}: transformers has no model with these keys ({reason})") from None


def _bigcode(keys: GgufKeys, layers: int, vocabulary_size: int) -> "PretrainedConfig":
    from transformers import GPTBigCodeConfig

    keys.neutral("starcoder.attention.head_count_kv", 1)
    return GPTBigCodeConfig(
        vocab_size=vocabulary_size,
        n_layer=layers,
        n_positions=keys.size("starcoder.context_length"),
        n_embd=keys.size("starcoder.embedding_length"),
        n_inner=keys.size("starcoder.feed_forward_length"),
        n_head=keys.size("starcoder.attention.head_count"),
        layer_norm_epsilon=keys.real("starcoder.attention.layer_norm_epsilon"),
        multi_query=True,
    )


def _llama_like(
    file: GgufFile, keys: GgufKeys, architecture: str, layers: int, vocabulary_size: int
) -> "PretrainedConfig":
    from transformers import LlamaConfig, Qwen2Config

    def size(key: str, default: int | None = None) -> int:
        return keys.size(f"{architecture}.{key}", default)

    width, heads = size("embedding_length"), size("attention.head_count")
    head_size = size("attention.key_length", width // heads or None)
    if heads * head_size > MAX_SIZE or head_size % 2:
        raise CheckpointError(f"{keys.name}: {heads} heads of {head_size} numbers cannot be computed")
    keys.neutral(f"{architecture}.attention.value_length", head_size)
    keys.neutral(f"{architecture}.rope.dimension_count", head_size)
    context = size("context_length")
    shared: dict[str, Any] = {
        "vocab_size": vocabulary_size,
        "num_hidden_layers": layers,
        "max_position_embeddings": context,
        "hidden_size": width,
        "intermediate_size": size("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "rms_norm_eps": keys.real(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, keys, f"{architecture}.rope", context, head_size),
    }
    if architecture == "qwen2":
        # Qwen2's config has no such field of its own, and every model but an odd one does without.
        own_size = {} if head_size * heads == width else {"head_dim": head_size}
        return Qwen2Config(**shared, **own_size, use_sliding_window=False)
    return LlamaConfig(
        **shared,
        head_dim=head_size,
        attention_bias=_has(file, "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"),
        mlp_bias=_has(file, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
    )


def _has(file: GgufFile, *endings: str) -> bool:
    return any(name.endswith(endings) for name in file.tensors)


def _rope(file: GgufFile, keys: GgufKeys, prefix: str, context: int, head_size: int) -> dict[str, Any]:
    """transformers' `rope_parameters`."""
    scaling = f"{prefix}.scaling"
    theta = keys.real(f"{prefix}.freq_base", 10000.0, least=1.0)
    linear = keys.real(f"{prefix}.scale_linear", 1.0)  # how it was written before there was a type
    kind = keys.text(f"{scaling}.type", "linear")  # llama.cpp's default, which a factor of 1 makes none
    factor = keys.real(f"{scaling}.factor", linear)
    if factor < 1:
        raise keys.refused(f"{scaling}.factor", factor, "1 or more")
    original = keys.size(f"{scaling}.original_context_length", context)
    for neutral in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor"):
        keys.neutral(f"{scaling}.{neutral}", 1.0)
    keys.neutral(f"{scaling}.yarn_log_multiplier", 0.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if kind == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": keys.real(f"{scaling}.yarn_beta_fast", 32.0),
            "beta_slow": keys.real(f"{scaling}.yarn_beta_slow", 1.0),
        }
    elif kind == "linear" and factor != 1:
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind not in ("linear", "none") or factor != 1:
        raise keys.refused(f"{scaling}.type", kind, "linear, yarn, or none with a factor of 1")
    if ROPE_FACTORS not in file.tensors:
        return rope
    llama3 = _llama3(file, keys.name, theta, head_size)
    if llama3 and rope["rope_type"] != "default":
        raise CheckpointError(
            f"{keys.name} has both {ROPE_FACTORS} and {scaling}.type: nothing here computes both"
        )
    return rope | llama3


def _llama3(file: GgufFile, name: str, theta: float, head_size: int) -> dict[str, Any]:
    """The fields of Llama 3's RoPE that give the factors of the file."""
    import numpy as np
    from gguf import dequantize

    tensor = file.tensors[ROPE_FACTORS]
    factors = dequantize(tensor.rows(), tensor.type)[0]
    if np.all(factors == 1):
        return {}
    if tensor.shape == (head_size // 2,) and np.all(np.isfinite(factors)):
        largest = float(str(factors.max()))
        for original in (1 << power for power in range(4, 25)):
            expected = _llama3_factors(theta, head_size, largest, original)
            if np.allclose(factors, expected, rtol=1e-4, atol=0):
                fields = {"factor": largest, "original_max_position_embeddings": original}
                return {"rope_type": "llama3", **fields, **LLAMA3_FREQUENCIES}
    raise CheckpointError(
        f"{name}: {ROPE_FACTORS} is not the frequency scaling of Llama 3: import the model's Hugging Face folder"
    )


def _llama3_factors(theta: float, head_size: int, factor: float, original: int) -> "np.ndarray[Any, Any]":
    """What each frequency is divided by (Llama 3.1's reference code, as transformers has it)."""
    import numpy as np

    low, high = LLAMA3_FREQUENCIES["low_freq_factor"], LLAMA3_FREQUENCIES["high_freq_factor"]
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_size, 2) / head_size)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    factors: np.ndarray[Any, Any] = 1 / ((1 - smooth) / factor + smooth)
    return factors
