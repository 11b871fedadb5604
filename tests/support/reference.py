"""What transformers itself says of a model: the reference of every greedy token."""

from collections.abc import Sequence
from typing import Any

import torch


def generated(model: Any, prompt: Sequence[int], count: int, end_ids: Sequence[int] = ()) -> list[int]:
    """transformers' own greedy tokens, up to `count`, an end token included."""
    ids = torch.tensor([list(prompt)])
    whole = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=list(end_ids) or None,
        pad_token_id=next(iter(end_ids), 0),
    )
    return [int(token_id) for token_id in whole[0, len(prompt) :]]
