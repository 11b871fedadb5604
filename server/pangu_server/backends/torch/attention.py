"""Our function in transformers' `AttentionInterface`: it keeps the new keys and values in pages and reads from them.

The modeling code calls it in each layer; there is no other cache, and no mask. What the runner has to tell it does not
go through the model's forward, since some models do not hand unknown arguments down to their layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface

from pangu_convert.artifact import ArtifactError
from pangu_server.backends.torch.cache import Flat, Heads, Options, PagedCache

NAME = "pangu_paged"


@dataclass(frozen=True, slots=True, eq=False)
class Paged:
    """What a forward has to do with the cache."""

    cache: PagedCache
    flat: Flat


class Probe:
    """In the place of a `Paged`: notes what each layer would keep."""

    def __init__(self) -> None:
        self.layers: dict[int, Heads] = {}


_current: ContextVar[Paged | Probe] = ContextVar("paged")


@contextmanager
def attending(paged: Paged | Probe) -> Iterator[None]:
    """A forward inside, on this thread, computes its attention by `paged`."""
    token = _current.set(paged)
    try:
        yield
    finally:
        _current.reset(token)


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a flat batch: query (1, heads, tokens, head_dim), key and value (1, kv_heads, tokens, head_dim).

    Returns (1, tokens, heads, head_dim).

    Raises:
        ArtifactError: the model has attention sinks or position biases, which this is not for.
    """
    if s_aux is not None or position_bias is not None:
        raise ArtifactError(
            f"{type(module).__name__} has attention sinks or position biases, which the engine does not know"
        )
    paged = _current.get()
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    value_dim = value.shape[2]
    # DeepSeek's are narrower than its keys; a page holds both in one width.
    value = pad(value, (0, key.shape[2] - value_dim))
    if isinstance(paged, Probe):
        paged.layers[module.layer_idx] = Heads(key.shape[1], key.shape[2])
        return query[None, ..., :value_dim], None
    options = Options(
        query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window or 0, softcap or 0.0
    )
    cache = paged.cache
    out = cache.attend(
        module.layer_idx, query.contiguous(), key.contiguous(), value.contiguous(), options, paged.flat
    )
    return out[None, ..., :value_dim], None


AttentionInterface.register(NAME, paged_attention)
