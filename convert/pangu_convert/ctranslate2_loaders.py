"""What CTranslate2 makes of each architecture: its own loaders where they are right, others for what it has none.

A loader fills CTranslate2's specification from a model of transformers. `unsupported` names what it would drop.
"""

import copy
from collections.abc import Iterator
from typing import Any

from ctranslate2.converters import transformers as loaders
from ctranslate2.converters import utils
from ctranslate2.specs.common_spec import LinearSpec
from ctranslate2.specs.transformer_spec import TransformerDecoderModelSpec

Loader = loaders.ModelLoader


class MistralLoader(loaders.MistralLoader):  # type: ignore[misc]
    """Without the window: the library computes prompts that are longer than it wrongly, see `attention_window`."""

    def get_model_spec(self, model: Any) -> Any:
        model.config = copy.copy(model.config)
        model.config.sliding_window = None
        return super().get_model_spec(model)


class LayerNormLoader(loaders.Qwen2Loader):  # type: ignore[misc]
    """A model with rotary positions and norms with a bias, as of StarCoder2. CTranslate2 4.8 has no loader for one."""

    epsilon, final_norm, output = "norm_epsilon", "norm", "o_proj"
    mlp: tuple[tuple[str, str], ...] = (("linear_0", "c_fc"), ("linear_1", "c_proj"))
    partial = False  # only some of a head's numbers are rotated
    parallel = False  # attention and MLP are given the same, and added
    set_layer_norm = Loader.set_layer_norm

    def get_model_spec(self, model: Any) -> Any:
        config = model.config
        scaling_type, scaling_factor, theta = self.get_rotary_params(config, 10_000)
        heads, grouped = config.num_attention_heads, config.num_key_value_heads
        rotated = config.rope_parameters["partial_rotary_factor"] if self.partial else 1
        spec = TransformerDecoderModelSpec.from_config(
            config.num_hidden_layers,
            heads,
            pre_norm=True,
            activation=loaders._SUPPORTED_ACTIVATIONS[config.hidden_act],
            ffn_glu=len(self.mlp) > 2,
            rotary_dim=int(config.hidden_size // heads * rotated),
            rotary_interleave=False,
            rotary_scaling_type=scaling_type,
            rotary_scaling_factor=scaling_factor,
            rotary_base=theta,
            num_heads_kv=None if grouped == heads else grouped,
            parallel_residual=self.parallel,
            shared_layer_norm=self.parallel,
        )
        self.set_decoder(spec.decoder, model.model)
        self.set_linear(spec.decoder.projection, model.lm_head)
        return spec

    def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
        model.config.rms_norm_eps = getattr(model.config, self.epsilon)  # what the base class takes
        super().set_config(config, model, tokenizer)

    def set_decoder(self, spec: Any, module: Any, quant_type: object = None) -> None:
        spec.scale_embeddings = False
        self.set_embeddings(spec.embeddings, module.embed_tokens)
        self.set_layer_norm(spec.layer_norm, getattr(module, self.final_norm))
        for layer_spec, layer in zip(spec.layer, module.layers, strict=True):
            attention = layer_spec.self_attention
            if self.parallel:
                self.set_layer_norm(layer_spec.shared_layer_norm, layer.input_layernorm)
            else:
                self.set_layer_norm(attention.layer_norm, layer.input_layernorm)
                self.set_layer_norm(layer_spec.ffn.layer_norm, layer.post_attention_layernorm)
            parts = [LinearSpec() for _ in range(3)]
            for part, name in zip(parts, ("q_proj", "k_proj", "v_proj"), strict=True):
                self.set_linear(part, getattr(layer.self_attn, name))
            utils.fuse_linear(attention.linear[0], parts)
            self.set_linear(attention.linear[1], getattr(layer.self_attn, self.output))
            for place, name in self.mlp:
                self.set_linear(getattr(layer_spec.ffn, place), getattr(layer.mlp, name))


class PhiLoader(LayerNormLoader):
    """Phi of transformers; the library's own is for the code that came with its first checkpoints."""

    epsilon, final_norm, output = "layer_norm_eps", "final_layernorm", "dense"
    mlp = (("linear_0", "fc1"), ("linear_1", "fc2"))
    partial = parallel = True


class StableLmLoader(LayerNormLoader):
    """StableLM, with attention and MLP one after the other."""

    epsilon = "layer_norm_eps"
    mlp = (("linear_0", "gate_proj"), ("linear_0_noact", "up_proj"), ("linear_1", "down_proj"))
    partial = True


LOADERS: dict[str, Any] = {  # classes
    "GPTBigCodeForCausalLM": loaders.GPTBigCodeMHALoader,
    "GemmaForCausalLM": loaders.GemmaLoader,
    "LlamaForCausalLM": loaders.LlamaLoader,
    "MistralForCausalLM": MistralLoader,
    "PhiForCausalLM": PhiLoader,
    "Qwen2ForCausalLM": loaders.Qwen2Loader,
    "Qwen3ForCausalLM": loaders.Qwen3Loader,
    "SeedOssForCausalLM": MistralLoader,
    "StableLmForCausalLM": StableLmLoader,
    "Starcoder2ForCausalLM": LayerNormLoader,
}


def rope_type(config: Any) -> str | None:
    """The kind of RoPE scaling in `config`, None for a model without RoPE."""
    kind: str | None = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    return kind


def attention_window(config: Any) -> int | None:
    """The tokens that each token attends to, where they are fewer than all.

    CTranslate2 forgets the beginning of a prompt that is longer, also for the tokens that should see it. So its
    artifacts are without the window, and of no longer context.
    """
    window: int | None = getattr(config, "sliding_window", None)
    return window


# What a loader takes for granted, or the library cannot compute, by `model_type`.
ROPE_TYPES = {"gemma": ("default",), "llama": ("default", "linear", "llama3")}
HEADS_OF_THEIR_OWN = ("gemma", "mistral", "qwen3", "seed_oss")  # kinds whose head_dim is written
# None: the loader takes any, or fails.
ACTIVATIONS = {"gemma": "gelu_pytorch_tanh", "phi": None, "stablelm": None, "starcoder2": None}


def unsupported(config: Any) -> Iterator[str]:
    """The settings in `config` that the loaders fail on, or worse, ignore."""
    kind = config.model_type
    neutral: dict[str, object]
    if kind == "gpt_bigcode":
        neutral = {"scale_attn_weights": True, "add_cross_attention": False, "layer_norm_epsilon": 1e-5}
    else:
        neutral = {"hidden_act": ACTIVATIONS.get(kind, "silu")}
        neutral |= {"use_sliding_window": False, "use_parallel_residual": False}
        if kind not in HEADS_OF_THEIR_OWN:
            neutral["head_dim"] = config.hidden_size // config.num_attention_heads
        if rope_type(config) not in ROPE_TYPES.get(kind, ("default", "linear")):
            yield f"RoPE scaling of type {rope_type(config)!r}"
        theta = config.rope_parameters["rope_theta"]
        if kind == "gemma" and theta != 10000:
            yield f"rope_theta = {theta}"
    for name, value in neutral.items():
        if value is not None and getattr(config, name, None) not in (None, value):
            yield f"{name} = {getattr(config, name)!r}"
