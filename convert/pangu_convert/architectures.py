"""The model architectures that are converted and served, and what each must fulfil."""

from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.errors import CheckpointError

ARCHITECTURES = ("GPTBigCodeForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM")
GGUF_ARCHITECTURES = ("llama", "qwen2", "starcoder")


def require_supported(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` unless the checkpoint's architecture is supported."""
    if checkpoint.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.architecture}; supported are {', '.join(ARCHITECTURES)}"
        )
    # CTranslate2's converter takes multi-query attention for granted and would write garbage.
    if checkpoint.architecture == "GPTBigCodeForCausalLM" and checkpoint.config.get("multi_query") is False:
        raise CheckpointError(
            f"{checkpoint.path} is a GPTBigCode model without multi-query attention (multi_query=false): only "
            "StarCoder's multi-query form is supported"
        )
