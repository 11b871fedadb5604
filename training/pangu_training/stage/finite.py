"""Whether numbers are finite, looked at while they pass by."""

import contextlib
from collections.abc import Iterator

import torch

from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.tensors import COMPUTED, FLOATING, StoredTensor


def all_finite(numbers: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether none is NaN or infinity, as they are or in `dtype`. By the least and the most: nothing is copied."""
    return not numbers.numel() or all(
        bound.to(dtype or bound.dtype).isfinite() for bound in numbers.aminmax()
    )


def require_finite(tensor: StoredTensor, chunk: bytearray) -> None:
    """Raise `CheckpointError` if `chunk`, bytes of `tensor`, holds NaN or infinity. A mask may."""
    if tensor.dtype not in FLOATING or COMPUTED.search(tensor.name):
        return
    numbers = torch.frombuffer(chunk, dtype=getattr(torch, FLOATING[tensor.dtype]))
    if not all_finite(numbers):
        raise CheckpointError(
            f"{tensor.name} in {tensor.file} holds NaN or infinity: the model is broken; download or export it again"
        )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: a block is so small that on busy cores it mostly waits for its other threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
