"""The model architectures that are converted and served, by format, and what each must fulfil."""

from collections.abc import Mapping

from pangu_convert.artifact import Format
from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.errors import CheckpointError

EVERY: tuple[Format, ...] = ("transformers", "ctranslate2", "gptq")
UNQUANTIZED: tuple[Format, ...] = ("transformers",)
NO_CTRANSLATE2: tuple[Format, ...] = ("transformers", "gptq")
# What a test has seen to give transformers' own greedy tokens: tests/server/backends/test_families.py.
ARCHITECTURES: Mapping[str, tuple[Format, ...]] = {
    "ApertusForCausalLM": NO_CTRANSLATE2,
    "CohereForCausalLM": NO_CTRANSLATE2,
    "DeepseekV2ForCausalLM": UNQUANTIZED,  # DeepSeek-Coder-V2
    "DeepseekV3ForCausalLM": UNQUANTIZED,
    "Ernie4_5ForCausalLM": NO_CTRANSLATE2,
    "Exaone4ForCausalLM": NO_CTRANSLATE2,
    "Gemma2ForCausalLM": NO_CTRANSLATE2,
    "GemmaForCausalLM": EVERY,  # CodeGemma
    "Glm4ForCausalLM": UNQUANTIZED,
    "Glm4MoeForCausalLM": UNQUANTIZED,
    "GPT2LMHeadModel": UNQUANTIZED,
    "GPTBigCodeForCausalLM": EVERY,
    "GPTNeoXForCausalLM": NO_CTRANSLATE2,
    "GraniteForCausalLM": NO_CTRANSLATE2,
    "GraniteMoeForCausalLM": UNQUANTIZED,
    "HeliumForCausalLM": NO_CTRANSLATE2,
    "HunYuanDenseV1ForCausalLM": NO_CTRANSLATE2,
    "LlamaForCausalLM": EVERY,  # Code Llama, DeepSeek-Coder, Yi-Coder, SmolLM2 and others
    "MistralForCausalLM": EVERY,  # Codestral
    "MixtralForCausalLM": UNQUANTIZED,
    "NemotronForCausalLM": NO_CTRANSLATE2,
    "Olmo2ForCausalLM": NO_CTRANSLATE2,
    "OlmoeForCausalLM": UNQUANTIZED,
    "OlmoForCausalLM": NO_CTRANSLATE2,
    "PersimmonForCausalLM": NO_CTRANSLATE2,
    "Phi3ForCausalLM": UNQUANTIZED,
    "PhiForCausalLM": EVERY,
    "Qwen2ForCausalLM": EVERY,
    "Qwen2MoeForCausalLM": UNQUANTIZED,
    "Qwen3ForCausalLM": EVERY,
    "Qwen3MoeForCausalLM": UNQUANTIZED,  # Qwen3-Coder
    "SeedOssForCausalLM": EVERY,
    "SmolLM3ForCausalLM": NO_CTRANSLATE2,
    "StableLmForCausalLM": EVERY,  # Stable-Code
    "Starcoder2ForCausalLM": EVERY,
}
GGUF_ARCHITECTURES = ("llama", "qwen2", "starcoder")


def require_supported(checkpoint: Checkpoint, format: Format | None = None) -> None:
    """Raise `CheckpointError` unless the checkpoint's architecture can become an artifact, of `format` if given."""
    formats = ARCHITECTURES.get(checkpoint.architecture)
    if formats is None:
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.architecture}; supported are {', '.join(ARCHITECTURES)}"
        )
    if format is not None and format not in formats:
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.architecture}, which can become {' or '.join(formats)}, not {format}: "
            f"pangu-convert {formats[0]}"
        )
    # CTranslate2's converter takes multi-query attention for granted and would write garbage.
    if checkpoint.architecture == "GPTBigCodeForCausalLM" and checkpoint.config.get("multi_query") is False:
        raise CheckpointError(
            f"{checkpoint.path} is a GPTBigCode model without multi-query attention (multi_query=false): only "
            "StarCoder's multi-query form is supported"
        )
