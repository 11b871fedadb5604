"""Draws one token for each row of a batch on its device, by the rule of `sampling.pick`."""

from collections.abc import Callable

import torch

# draw(logits, temperature, top_k, top_p, min_p, uniform): the tokens (n,). `logits` (n, vocabulary) are in single
# precision; of the others (n,), in double precision but for the whole numbers top_k, each row has its own.
# Temperatures are above 0; top_k is 0 where there is none, and never 1.
Draw = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]


def draw_by_sorting(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """A `Draw` on any device: a fixed sequence of operations, for none of which the host waits."""
    width, temperature = logits.shape[1], temperature.float()[:, None]
    ordered = logits.sort(descending=True).values
    best = ordered[:, :1]
    last = torch.where(top_k > 0, top_k.clamp(max=width), width) - 1
    lowest = ordered.gather(1, last[:, None])  # of those that top-k keeps
    weights = ((ordered - best) / temperature).exp_() * (ordered >= lowest)
    mass = weights.cumsum(-1, dtype=torch.float64)
    short = (mass < top_p[:, None] * mass[:, -1:]).sum(-1, keepdim=True)  # tokens that do not reach top-p
    lowest = torch.maximum(lowest, ordered.gather(1, short.clamp(max=width - 1)))
    weights = ((logits - best) / temperature).exp_()
    weights *= (logits >= lowest) & (weights >= min_p.float()[:, None])
    mass = weights.cumsum(-1, dtype=torch.float64)
    beyond = (mass > uniform[:, None] * mass[:, -1:]) & (weights > 0)
    return beyond.byte().argmax(-1)  # the first one
