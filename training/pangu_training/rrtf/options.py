"""How `fit` trains: its options, their defaults and their flags, in one place."""

import argparse
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

from pangu_training.stage.command import whole_number

FULL_LEARNING_RATE, LORA_LEARNING_RATE = 2e-5, 1e-4  # WizardCoder's; StarCoder's finetune.py

MAY_BE_ZERO = ("lora_rank", "warmup_steps", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to train; recorded in the run, and the same when it goes on."""

    rank_loss: Literal["score-gap", "unweighted", "off"] = "score-gap"
    fine_tuning_loss: Literal["sum", "mean"] = "sum"
    lora_rank: int = 0
    learning_rate: float | None = None
    warmup_steps: int = 30
    epochs: int = 6
    global_batch: int = 512
    micro_batch: int = 1
    max_length: int = 2048
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    gradient_checkpointing: bool = True
    save_steps: int = 50
    held_out_max_tokens: int = 512
    held_out_batch: int = 8
    seed: int = 0

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        return self.learning_rate or (LORA_LEARNING_RATE if self.lora_rank else FULL_LEARNING_RATE)


HELP = {
    "rank_loss": "score-gap: the paper's; unweighted: RRHF's; off: fine-tuning on the chosen answers only",
    "fine_tuning_loss": "over an answer's tokens: sum is the paper's formula, mean RRHF's code",
    "lora_rank": "train adapters of this rank on all linear layers, alpha twice the rank; 0 trains all weights",
    "learning_rate": f"peak of a cosine; without it {FULL_LEARNING_RATE}, for LoRA {LORA_LEARNING_RATE}",
    "warmup_steps": "steps of linear warm-up, at most a tenth of all",
    "epochs": "passes over the data",
    "global_batch": "pairs an optimizer step, on all devices together",
    "micro_batch": "pairs a device holds at once",
    "max_length": "tokens of prompt and answer together; rows whose chosen answer is longer are left out",
    "weight_decay": "AdamW's",
    "max_gradient_norm": "gradients are clipped to it",
    "precision": "auto: bf16 on a GPU (weights and optimizer stay float32), fp32 on a CPU",
    "attention": "the attention kernel",
    "gradient_checkpointing": "compute activations again in the backward pass instead of keeping them",
    "save_steps": "steps between checkpoints, beside one an epoch",
    "held_out_max_tokens": "of an answer to a held-out problem, at most",
    "held_out_batch": "held-out problems a device answers at once",
    "seed": "of the order of the data, dropout and LoRA's first weights",
}


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare a flag for every option."""
    for field in fields(Options):
        flag = "--" + field.name.replace("_", "-")
        text = f"{HELP[field.name]} (default: {field.default})"
        if field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        elif get_origin(field.type) is Literal:
            choices = get_args(field.type)
            parser.add_argument(flag, choices=choices, default=field.default, help=text)
        else:
            least = 0 if field.name in MAY_BE_ZERO else 1
            number = whole_number(least) if field.type is int else float
            parser.add_argument(flag, type=number, default=field.default, metavar="N", help=text)


def options_of(arguments: argparse.Namespace) -> Options:
    """The options that the flags say."""
    return Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
