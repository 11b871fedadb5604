"""The kernels for CPUs against plain torch: exact up to rounding, whatever the size, and a row by itself."""

import numpy as np
import pytest
import torch
from torch import nn

from pangu_server.backends.torch.kernels.cpu_attention import PAGE_TOKENS, cpu_attention
from pangu_server.backends.torch.kernels.cpu_linear import CpuLinear
from pangu_server.backends.torch.kernels.cpu_norm import CpuNorm, replace_norms
from pangu_server.backends.torch.quantized import Quantized


def matrix(
    outputs: int, inputs: int, bits: int, groups: int, *, ordered: bool = False, shifted: bool = False
) -> Quantized:
    least = -(2 ** (bits - 1))
    integers = torch.randint(least, -least, (outputs, inputs)).to(torch.int8)
    order = torch.randperm(inputs) if ordered else None
    shifts = torch.randint(2 * least, 1 - 2 * least, (outputs, groups)).float() if shifted else None
    return Quantized(integers, torch.rand((outputs, groups)) + 0.1, bits, order, shifts)


@pytest.mark.parametrize(
    ("outputs", "inputs", "bits", "groups", "ordered", "shifted", "threads"),
    [
        (100, 64, 8, 1, False, False, 1),
        (300, 192, 8, 3, False, False, 2),
        (65, 128, 4, 2, True, False, 1),
        (300, 576, 4, 9, False, False, 1),
        (1, 64, 8, 1, True, False, 2),
        (100, 64, 4, 1, False, True, 1),
        (70, 576, 4, 9, False, True, 2),
        (65, 128, 8, 2, True, True, 1),
    ],
)
def test_a_product_is_that_of_the_plain_matrix(
    outputs: int, inputs: int, bits: int, groups: int, ordered: bool, shifted: bool, threads: int
) -> None:
    torch.manual_seed(outputs)
    weight = matrix(outputs, inputs, bits, groups, ordered=ordered, shifted=shifted)
    assert CpuLinear.supports(weight)
    bias = torch.randn(outputs)
    linear = CpuLinear(weight, bias, threads)
    for rows in (1, 2, 3, 4, 5, 9):
        x = torch.randn((rows, inputs))
        expected = x.double() @ weight.dense().double().T + bias.double()
        found = linear(x)
        scale = (x.double().abs() @ weight.dense().double().abs().T).max()
        assert (found - expected).abs().max() < 2e-5 * scale
        for row in range(rows):
            assert torch.equal(linear(x[row : row + 1])[0], found[row]), "its company changes nothing"


@pytest.mark.parametrize("shift", [None, -256.0, 256.0])
def test_the_largest_numbers_do_not_overflow(shift: float | None) -> None:
    """Eight-bit kernels of other libraries saturate here: sums of two products beyond 16 bits."""
    integers = torch.full((3, 256), -128, dtype=torch.int8)
    integers[1] = 127
    shifts = None if shift is None else torch.full((3, 1), shift)
    weight = Quantized(integers, torch.ones((3, 1)), 8, shifts=shifts)
    x = torch.full((2, 256), 1e6)
    x[1] = -1e6
    expected = x.double() @ weight.dense().double().T
    assert torch.allclose(CpuLinear(weight, None, 1)(x).double(), expected, rtol=1e-4)


def test_zeros_and_one_large_number_in_a_block() -> None:
    weight = matrix(10, 128, 8, 1)
    x = torch.zeros((2, 128))
    x[1, 3] = 1e4
    expected = x @ weight.dense().T
    found = CpuLinear(weight, None, 1)(x)
    assert torch.equal(found[0], torch.zeros(10))
    assert torch.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("inputs", "groups"), [(96, 1), (64, 2)])
def test_what_does_not_fit_is_left_to_others(inputs: int, groups: int) -> None:
    assert not CpuLinear.supports(matrix(8, inputs, 8, groups))


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 0.0), (0, 5.0)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "parallel"),
    [(4, 2, 16, False), (6, 1, 8, True), (7, 1, 32, False), (2, 2, 64, False)],
)
def test_attention_over_pages_is_attention(
    heads: int, kv_heads: int, width: int, window: int, softcap: float, parallel: bool
) -> None:
    """Two rows of different lengths, their pages scattered; pages that nobody wrote hold NaN."""
    torch.manual_seed(0)
    kernels = cpu_attention(width, parallel)
    keys = torch.full((12, kv_heads, width, PAGE_TOKENS), float("nan"))
    values = torch.full((12, kv_heads, PAGE_TOKENS, width), float("nan"))
    tables = np.array([[7, 2, 9, 4], [1, 11, 0, 3]], np.int32)
    lengths, new = (50, 17), 3
    queries, out = torch.randn((2 * new, heads, width)), torch.empty((2 * new, heads, width))
    stored = []
    for row, length in enumerate(lengths):
        own = torch.randn((2, length, kv_heads, width)) * 2
        places = np.array(
            [tables[row, at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS for at in range(length)]
        )
        kernels.store(own[0].numpy(), own[1].numpy(), places, keys.numpy(), values.numpy())
        stored.append(own)
    tokens = np.arange(2 * new)
    rows = tokens // new
    visible = np.array([lengths[row] - new + 1 + at % new for at, row in enumerate(rows)])
    kernels.attend(
        queries.numpy(), keys.numpy(), values.numpy(), tokens, rows, visible, tables,
        np.float32(0.3), np.float32(softcap), window, out.numpy(),
    )  # fmt: skip
    for token, (row, seen) in enumerate(zip(rows.tolist(), visible.tolist(), strict=True)):
        first = max(0, seen - window) if window else 0
        own = stored[row][:, first:seen].repeat_interleave(heads // kv_heads, 2)
        scores = torch.einsum("hd,thd->ht", queries[token], own[0]) * 0.3
        if softcap:
            scores = softcap * (scores / softcap).tanh()
        expected = torch.einsum("ht,thd->hd", scores.softmax(-1), own[1])
        assert torch.allclose(out[token], expected, atol=1e-5)


class ToyRMSNorm(nn.Module):  # type: ignore[misc]
    """As Llama's, or as Gemma's, which adds one to its weight."""

    def __init__(self, width: int, added: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.added = nn.Parameter(torch.rand(width)), 1e-5, added

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + self.added) * normal


def test_a_norm_is_replaced_where_it_is_the_same() -> None:
    model = nn.Sequential(ToyRMSNorm(40, 0.0), nn.Linear(40, 40), ToyRMSNorm(40, 1.0))
    x = torch.randn((1, 3, 40))
    before = model(x)
    assert replace_norms(model) == 1
    assert [type(module) for module in model] == [CpuNorm, nn.Linear, ToyRMSNorm]
    assert torch.allclose(model(x), before, atol=1e-5)
