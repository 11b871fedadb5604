"""The model architectures that are converted and served, by format, and what each must fulfil."""

from collections.abc import Mapping

from pangu_convert.artifact import Format
from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.errors import CheckpointError

EVERY: tuple[Format, ...] = ("transformers", "ctranslate2", "gptq")
UNQUANTIZED: tuple[Format, ...] = ("transformers",)
NO_GPTQ: tuple[Format, ...] = ("transformers", "ctranslate2")
# What a test has seen to give transformers' own greedy tokens: tests/server/backends/test_families.py.
ARCHITECTURES: Mapping[str, tuple[Format, ...]] = {
    "GPTBigCodeForCausalLM": EVERY,
    "LlamaForCausalLM": EVERY,  # Code Llama, DeepSeek-Coder, Yi-Coder, SmolLM2 and others
    "Qwen2ForCausalLM": EVERY,
    "ApertusForCausalLM": UNQUANTIZED,
    "CohereForCausalLM": UNQUANTIZED,
    "Ernie4_5ForCausalLM": UNQUANTIZED,
    "Exaone4ForCausalLM": UNQUANTIZED,
    "GPT2LMHeadModel": UNQUANTIZED,
    "Gemma2ForCausalLM": UNQUANTIZED,
    "GemmaForCausalLM": NO_GPTQ,  # CodeGemma
    "Glm4ForCausalLM": UNQUANTIZED,
    "GraniteForCausalLM": UNQUANTIZED,
    "HeliumForCausalLM": UNQUANTIZED,
    "HunYuanDenseV1ForCausalLM": UNQUANTIZED,
    "MistralForCausalLM": NO_GPTQ,  # Codestral
    "Olmo2ForCausalLM": UNQUANTIZED,
    "OlmoForCausalLM": UNQUANTIZED,
    "PersimmonForCausalLM": UNQUANTIZED,
    "Phi3ForCausalLM": UNQUANTIZED,
    "PhiForCausalLM": UNQUANTIZED,
    "Qwen3ForCausalLM": NO_GPTQ,
    "SeedOssForCausalLM": UNQUANTIZED,
    "SmolLM3ForCausalLM": UNQUANTIZED,
    "Starcoder2ForCausalLM": NO_GPTQ,
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
