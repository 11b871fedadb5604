"""Drawing on the device, computed by Triton's interpreter, against the same rules in NumPy with double precision."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import support.interpreted  # noqa: F401
import torch

from pangu_server.backends.torch.kernels import triton_sampling
from pangu_server.backends.torch.kernels.triton_sampling import sample

pytestmark = [
    # NumPy 1.25 warns of what the interpreter does with a loop's bounds.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    # Logits of minus infinity are compared with each other behind the vocabulary's end.
    pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning"),
]


def drawn(
    logits: npt.NDArray[Any], temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    """The rules, word for word."""
    values = logits.astype(np.float64)
    if temperature == 0:
        return int(values.argmax())
    weights = np.exp((values - values.max()) / temperature)
    kept = np.ones(len(values), dtype=bool)
    order = np.sort(values)[::-1]
    if 0 < top_k < len(values):
        kept &= values >= order[top_k - 1]
    if top_p < 1:
        best = np.argsort(-values, kind="stable")
        best = best[kept[best]]
        needed = np.searchsorted(weights[best].cumsum(), top_p * weights[kept].sum())
        kept &= values >= values[best[min(needed, len(best) - 1)]]
    kept &= weights >= min_p
    cumulated = np.where(kept, weights, 0).cumsum()
    return int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))


def found(logits: torch.Tensor, rows: list[tuple[float, int, float, float, float]]) -> list[int]:
    temperature, top_k, top_p, min_p, uniform = zip(*rows, strict=True)
    tokens = sample(
        logits,
        torch.tensor(temperature),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(top_p),
        torch.tensor(min_p),
        torch.tensor(uniform),
    )
    assert tokens.dtype == torch.int64
    return list(map(int, tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_token_is_the_one_of_the_rules(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sampling, "BLOCK", 128)  # several blocks, the last one not full
    random = np.random.default_rng(0)
    rows = [
        (temperature, top_k, top_p, min_p, random.random())
        for temperature in ((0.0, 0.2, 1.0) if dtype == torch.float32 else (1.0,))
        for top_k, top_p, min_p in (
            (0, 1.0, 0.0),
            (0, 0.95, 0.0),
            (5, 1.0, 0.0),
            (40, 0.6, 0.1),
            (0, 0.3, 0.05),
            (1, 1.0, 0.0),
            (999, 0.999, 0.0),
            (0, 0.0, 0.0),
        )
    ]
    logits = torch.from_numpy(random.normal(size=(len(rows), 200)).astype(np.float32) * 3).to(dtype)
    right = [drawn(each.float().numpy(), *row) for each, row in zip(logits, rows, strict=True)]
    assert found(logits, rows) == right


TIED = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, -0.0, 0.0, float("-inf")])


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "kept"),
    [
        (1, 1.0, 0.0, [1, 3]),  # all that equal the last one
        (3, 1.0, 0.0, [1, 2, 3, 4]),
        (0, 0.0, 0.0, [1, 3]),
        (0, 0.67, 0.0, [1, 3]),  # 67.3 % of all
        (0, 0.68, 0.0, [1, 2, 3, 4]),
        (3, 0.75, 0.0, [1, 2, 3, 4]),  # of the four, these two have 73.1 %
        (3, 0.72, 0.0, [1, 3]),
        (6, 1.0, 0.0, [0, 1, 2, 3, 4, 5, 6]),  # two kinds of zero are one number
        (8, 1.0, 0.0, [0, 1, 2, 3, 4, 5, 6]),  # what is impossible is never drawn
        (0, 1.0, 0.2, [1, 2, 3, 4]),
    ],
)
def test_what_is_kept(top_k: int, top_p: float, min_p: float, kept: list[int]) -> None:
    weights = TIED.double().exp()[kept].cumsum(0)
    ends = (weights / weights[-1]).tolist()
    # In the middle of each token's part, and at both ends of the whole.
    uniforms = [0.0, *((low + high) / 2 for low, high in pairwise([0.0, *ends])), 1.0]
    tokens = found(TIED.expand(len(uniforms), -1), [(1.0, top_k, top_p, min_p, each) for each in uniforms])
    assert tokens == [kept[0], *kept, kept[-1]]


def test_without_a_temperature_the_lowest_of_equal_ids_wins() -> None:
    assert found(TIED[None], [(0.0, 0, 1.0, 0.0, 0.9)]) == [1]


@pytest.mark.parametrize("temperature", [1e-6, 1e-40])
def test_a_tiny_temperature_is_the_highest_logit(temperature: float) -> None:
    logits = torch.tensor([[0.5, 2.0, 1.9999]])
    assert found(logits, [(temperature, 0, 0.9, 0.0, 0.5)]) == [1]


def test_a_row_does_not_depend_on_the_others() -> None:
    random = np.random.default_rng(1)
    rows = [(0.8, 10, 0.9, 0.01, random.random()) for _ in range(2)]
    logits = torch.from_numpy(random.normal(size=(2, 100)).astype(np.float32))
    together = found(logits, rows)
    assert together == [found(logits[row : row + 1], rows[row : row + 1])[0] for row in range(2)]
    wide = torch.zeros((2, 130))
    wide[:, :100] = logits
    assert found(wide[:, :100], rows) == together
