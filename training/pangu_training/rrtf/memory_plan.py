"""The memory plan: what a training step holds on each device, told before anything is loaded.

Weights, gradients and optimizer states are counted exactly, from the shapes in `config.json`. Activations are an
estimate for a full micro-batch of the longest texts, so at most that much.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from pangu_training.stage.architecture import model_config
from pangu_training.stage.checkpoint import Checkpoint

GIB = 1 << 30
ADAM_BYTES = 8  # two float32 moments a trained parameter
# What a layer keeps for its backward pass, in tensors as wide as the hidden and the inner state: counted for
# GPTBigCode and Llama, without attention's own, which its fused kernels do not keep.
LAYER_HIDDENS, LAYER_INNERS = 10, 3
ACTIVATION_BYTES = 4  # autocast keeps the residual stream and the norms in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the plan needs to know of a model."""

    parameters: int
    layer_parameters: int  # of one layer
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    linear_widths: int  # input plus output width, summed over the linear layers that LoRA adapts

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Shape":
        """The shape of a checkpoint's model, from its config alone."""
        config = model_config(checkpoint)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        [blocks] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        linears = [module for module in blocks.modules() if isinstance(module, nn.Linear)]
        return cls(
            parameters=model.num_parameters(),
            layer_parameters=sum(parameter.numel() for parameter in blocks[0].parameters()),
            layers=len(blocks),
            hidden=config.hidden_size,
            inner=max(linear.out_features for linear in linears),
            vocabulary=config.vocab_size,
            linear_widths=sum(linear.in_features + linear.out_features for linear in linears),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Bytes on each device."""

    name: str
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def fixed(self) -> int:
        """What is there whatever the batch: exact."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """The whole of a step."""
        return self.fixed + self.activations


def plan(
    shape: Shape,
    *,
    lora_rank: int,
    shards: int,
    bf16: bool,
    tokens: int,
    gradient_checkpointing: bool,
) -> Plan:
    """The plan for full training (`lora_rank` 0) or LoRA.

    `shards` are the devices that share weights, gradients and optimizer states (FSDP, ZeRO-3), 1 for none;
    `tokens` those of a micro-batch, both answers of its pairs counted.
    """
    trained = lora_rank * shape.linear_widths if lora_rank else shape.parameters
    width = 2 if bf16 else 4
    frozen_bytes = width * shape.parameters if lora_rank else 0
    weights = (frozen_bytes + 4 * trained) // shards
    if shards > 1:  # two layers and the embeddings are gathered at a time
        embeddings = shape.parameters - shape.layers * shape.layer_parameters
        weights += width * (2 * shape.layer_parameters + embeddings)
    elif bf16:
        weights += 2 * trained  # autocast's copies of what is kept in float32
    layer = ACTIVATION_BYTES * tokens * (LAYER_HIDDENS * shape.hidden + LAYER_INNERS * shape.inner)
    inputs = ACTIVATION_BYTES * tokens * shape.hidden
    kept = shape.layers * inputs + layer if gradient_checkpointing else shape.layers * layer
    # Logits, their float32 copy and its gradient, and one answer's in float32 twice more.
    logits = tokens * shape.vocabulary * (width + 4 + 4 + 4)
    return Plan(
        name=f"{f'LoRA {lora_rank}' if lora_rank else 'full'}, {f'sharded over {shards}' if shards > 1 else 'whole'}",
        weights=weights,
        gradients=4 * trained // shards,
        optimizer=ADAM_BYTES * trained // shards,
        activations=kept + logits,
    )


def device_bytes(processes_here: int) -> int:
    """The memory of this process' device: the GPU's, or its share of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes_here


def table(plans: list[Plan], chosen: Plan, available: int) -> str:
    """The plans as text, the chosen one marked."""
    head = f"{'GiB on each device':<24}{'weights':>9}{'gradients':>11}{'optimizer':>11}{'activations':>13}{'all':>9}"
    lines = [f"memory plan ({available / GIB:.0f} GiB a device)", head]
    for one in plans:
        figures = (one.weights, one.gradients, one.optimizer, one.activations, one.total)
        cells = "".join(f"{n / GIB:>{w}.1f}" for n, w in zip(figures, (9, 11, 11, 13, 9), strict=True))
        verdict = "" if one.total <= available else "   does not fit"
        lines.append(f"{one.name:<24}{cells}{verdict}{'   <- this run' if one == chosen else ''}")
    return "\n".join(lines)
