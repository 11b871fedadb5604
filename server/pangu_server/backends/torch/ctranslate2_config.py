"""transformers' config of the model in a CTranslate2 artifact: the checkpoint's, which pangu-convert puts there.

What the library's own converter or an older pangu-convert wrote does not have it. Then it is read from the shapes and
constants of `model.bin`. Either is checked afterwards, where CTranslate2's loader is run on this config: it must come
to the same shapes and constants, see `ctranslate2_weights`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from pangu_convert.artifact import CHECKPOINT_CONFIG, Artifact, ArtifactError
from pangu_convert.model_bin import ModelBin
from pangu_training.stage.architecture import config_of
from pangu_training.stage.checkpoint import CONFIG, read_json
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.files import read_object

EMBEDDINGS, HEAD = "decoder/embeddings/weight", "decoder/projection/weight"
POSITIONS = "decoder/position_encodings/encodings"
ATTENTION, MLP = "decoder/layer_0/self_attention", "decoder/layer_0/ffn"
# By CTranslate2's numbers. What it has one name for, transformers computes with other last bits under several.
ACTIVATIONS = {0: "relu", 1: "gelu_pytorch_tanh", 2: "silu", 3: "gelu", 4: "quick_gelu"}
DEFAULT_EPSILON = 1e-5  # CTranslate2's


def model_config(artifact: Artifact, model_bin: ModelBin) -> Any:
    """A transformers config of the artifact's architecture, with what has an influence on logits.

    Raises:
        ArtifactError: the file lacks something, or nonsense is in it; or there is none, and the architecture is not one
            of those that `model.bin` tells enough of.
    """
    config = _stored_config(artifact)
    if config is None:
        config = _read_config(artifact, model_bin)
    config.architectures = [artifact.manifest.architecture]
    config.dtype = getattr(torch, artifact.manifest.dtype)
    config.eos_token_id = [*artifact.manifest.end_token_ids]
    config.tie_word_embeddings = model_bin.target(HEAD) == model_bin.target(EMBEDDINGS)
    return config


def _stored_config(artifact: Artifact) -> Any | None:
    """The checkpoint's, None if the artifact does not have it."""
    if CHECKPOINT_CONFIG not in artifact.manifest.files:
        return None
    try:
        return config_of(read_json(artifact.path / CHECKPOINT_CONFIG), artifact.manifest.dtype)
    except (OSError, CheckpointError) as error:
        raise ArtifactError(
            f"{artifact.path / CHECKPOINT_CONFIG} is damaged ({error}): convert the checkpoint again"
        ) from None


def _read_config(artifact: Artifact, model_bin: ModelBin) -> Any:
    architecture = artifact.manifest.architecture
    if architecture not in CONFIGS:
        raise ArtifactError(
            f"{artifact.path} is a {architecture} without {CHECKPOINT_CONFIG}: convert the checkpoint again, or "
            "serve it with --engine ctranslate2"
        )
    try:
        epsilon = read_object(artifact.path / CONFIG)["layer_norm_epsilon"] or DEFAULT_EPSILON
        return CONFIGS[architecture](artifact, model_bin, epsilon)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, StrictDataclassError) as error:
        raise ArtifactError(
            f"{artifact.path} does not describe a {architecture} ({error!r}): convert the checkpoint again"
        ) from error


def _gpt_bigcode(artifact: Artifact, model_bin: ModelBin, epsilon: float) -> Any:
    vocabulary, hidden = model_bin.variable(EMBEDDINGS).shape
    positions, _ = model_bin.variable(POSITIONS).shape
    return transformers.GPTBigCodeConfig(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=hidden,
        n_layer=_num_layers(model_bin),
        n_head=_integer(model_bin, "decoder/num_heads"),
        n_inner=model_bin.variable(f"{MLP}/linear_0/weight").shape[0],
        activation_function=ACTIVATIONS[_integer(model_bin, "decoder/activation")],
        layer_norm_epsilon=epsilon,
        multi_query=True,
    )


def _llama(artifact: Artifact, model_bin: ModelBin, epsilon: float) -> Any:
    return transformers.LlamaConfig(
        attention_bias=f"{ATTENTION}/linear_1/bias" in model_bin,
        mlp_bias=f"{MLP}/linear_0/bias" in model_bin,
        **_gated(artifact, model_bin, epsilon),
    )


def _qwen2(artifact: Artifact, model_bin: ModelBin, epsilon: float) -> Any:
    return transformers.Qwen2Config(**_gated(artifact, model_bin, epsilon))


def _gated(artifact: Artifact, model_bin: ModelBin, epsilon: float) -> dict[str, Any]:
    """What Llama and its descendants have in common."""
    vocabulary, hidden = model_bin.variable(EMBEDDINGS).shape
    heads = _integer(model_bin, "decoder/num_heads")
    grouped = f"{ATTENTION}/num_heads_kv"
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": model_bin.variable(f"{MLP}/linear_0/weight").shape[0],
        "num_hidden_layers": _num_layers(model_bin),
        "num_attention_heads": heads,
        "num_key_value_heads": _integer(model_bin, grouped) if grouped in model_bin else heads,
        "hidden_act": ACTIVATIONS[_integer(model_bin, "decoder/activation")],
        "max_position_embeddings": artifact.manifest.context_length,
        "rms_norm_eps": epsilon,
        "rope_parameters": _rope(model_bin),
    }


def _rope(model_bin: ModelBin) -> dict[str, Any]:
    def number(name: str) -> float:
        """As it was before it became a float32: the shortest number that becomes this one."""
        return float(str(np.float32(model_bin.number(f"{ATTENTION}/{name}"))))

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": number("rotary_base")}
    if f"{ATTENTION}/rotary_scaling_type" not in model_bin:
        return rope
    rope["factor"] = number("rotary_scaling_factor")
    rope["rope_type"] = {0: "linear", 2: "llama3"}[_integer(model_bin, f"{ATTENTION}/rotary_scaling_type")]
    if rope["rope_type"] == "llama3":
        rope["low_freq_factor"] = number("rotary_low_freq_factor")
        rope["high_freq_factor"] = number("rotary_high_freq_factor")
        name = "original_max_position_embeddings"
        rope[name] = _integer(model_bin, f"{ATTENTION}/{name}")
    return rope


def _num_layers(model_bin: ModelBin) -> int:
    numbers = [name.split("/")[1] for name in model_bin.variables if name.startswith("decoder/layer_")]
    return len({name for name in numbers if name.removeprefix("layer_").isdigit()})


def _integer(model_bin: ModelBin, name: str) -> int:
    return int(model_bin.number(name))


CONFIGS: dict[str, Callable[[Artifact, ModelBin, float], Any]] = {
    "GPTBigCodeForCausalLM": _gpt_bigcode,
    "LlamaForCausalLM": _llama,
    "Qwen2ForCausalLM": _qwen2,
}
