"""How `fit` trains: its options, their defaults and their flags, in one place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pangu_training.stage.options import counted, nested, option

FULL_LEARNING_RATE, LORA_LEARNING_RATE = 2e-5, 1e-4  # WizardCoder's; StarCoder's finetune.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to train; recorded in the run, and the same when it goes on."""

    rank_loss: Literal["score-gap", "unweighted", "off"] = option(
        "score-gap: the paper's; unweighted: RRHF's; off: fine-tuning on the chosen answers only", "score-gap"
    )
    fine_tuning_loss: Literal["sum", "mean"] = option(
        "over an answer's tokens: sum is the paper's formula, mean RRHF's code", "sum"
    )
    lora_rank: int = counted(
        "train adapters of this rank on all linear layers, alpha twice the rank; 0 trains all weights",
        0,
        least=0,
    )
    learning_rate: float | None = option(
        f"peak of a cosine (default: {FULL_LEARNING_RATE}, for LoRA {LORA_LEARNING_RATE})", None, metavar="N"
    )
    warmup_steps: int = counted("steps of linear warm-up, at most a tenth of all", 30, least=0)
    epochs: int = counted("passes over the data", 6)
    global_batch: int = counted("pairs an optimizer step, on all devices together", 512)
    micro_batch: int = counted("pairs a device holds at once", 1)
    max_length: int = counted(
        "tokens of prompt and answer together; rows whose chosen answer is longer are left out", 2048
    )
    weight_decay: float = option("AdamW's", 0.0, metavar="N")
    max_gradient_norm: float = option("gradients are clipped to it", 1.0, metavar="N")
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto: bf16 on a GPU (weights and optimizer stay float32), fp32 on a CPU", "auto"
    )
    attention: Literal["sdpa", "flash_attention_2", "eager"] = option("the attention kernel", "sdpa")
    gradient_checkpointing: bool = option(
        "compute activations again in the backward pass instead of keeping them", True
    )
    save_steps: int = counted("steps between checkpoints, besides the one each epoch", 50)
    held_out_max_tokens: int = counted("of an answer to a held-out problem, at most", 512)
    held_out_batch: int = counted("held-out problems a device answers at once", 8)
    seed: int = counted("of the order of the data, dropout and LoRA's first weights", 0, least=0)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        return self.learning_rate or (LORA_LEARNING_RATE if self.lora_rank else FULL_LEARNING_RATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to train, and what to evaluate on."""

    held_out: Path | None = option("ranked pairs to evaluate on at first and each epoch", None)
    held_out_problems: Path | None = option("problems to solve at first and each epoch", None)
    unsafe: bool = option("run programs even where nothing confines them", False)
    options: Options = nested(Options)
