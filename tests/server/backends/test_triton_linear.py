"""The packed products, computed by Triton's interpreter, against the matrix they were packed from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import support.interpreted  # noqa: F401
import torch

from pangu_server.backends.torch.kernels import triton_linear
from pangu_server.backends.torch.kernels.launching import Launch, Plan, default_plan
from pangu_server.backends.torch.kernels.triton_linear import TritonLinear
from pangu_server.backends.torch.quantized import Quantized

# NumPy 1.25 warns of what the interpreter does with a loop's bounds.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

HALF, BRAIN = torch.float16, torch.bfloat16
# The interpreter cuts bfloat16 off where a GPU rounds.
MOST_ERROR = {HALF: 1e-3, BRAIN: 8e-3}


def matrix(
    bits: int, outputs: int, inputs: int, groups: int, *, ordered: bool = False, shifted: bool = False
) -> Quantized:
    torch.manual_seed(0)
    integers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (outputs, inputs), dtype=torch.int8)
    scales = torch.rand((outputs, groups)) * 0.01 + 0.001
    shifts = torch.randint(-(2**bits), 2**bits + 1, (outputs, groups)).float() if shifted else None
    return Quantized(integers, scales, bits, torch.randperm(inputs) if ordered else None, shifts)


def expected(weight: Quantized, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    product = x.float() @ weight.dense().T
    return product if bias is None else product + bias.float()


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.float() - right).norm() / right.norm())


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize(
    ("bits", "outputs", "inputs", "groups"),
    [
        (4, 72, 576, 9),  # groups of 64; the outputs are not a multiple of the tile
        (4, 40, 512, 4),  # groups smaller than the block
        (4, 24, 128, 4),  # groups of 32
        (8, 24, 64, 2),
        (8, 40, 512, 2),  # groups larger than the block
        (8, 72, 896, 1),  # a scale a row
        (4, 8, 192, 1),
    ],
)
def test_the_product_is_that_of_the_matrix(
    bits: int, outputs: int, inputs: int, groups: int, dtype: torch.dtype
) -> None:
    weight, bias = matrix(bits, outputs, inputs, groups), torch.randn(outputs)
    x = torch.randn((3, inputs)).to(dtype)
    for linear in (TritonLinear.pack(weight, bias, dtype), TritonLinear.pack(weight, None, dtype)):
        found = linear(x)
        assert found.dtype == dtype
        assert error(found, expected(weight, x, linear.bias)) < MOST_ERROR[dtype]


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize(
    ("bits", "inputs", "groups"), [(4, 576, 9), (4, 512, 4), (4, 192, 1), (8, 512, 2), (8, 128, 1)]
)
def test_zero_points_shift_the_integers(bits: int, inputs: int, groups: int, dtype: torch.dtype) -> None:
    weight = matrix(bits, 40, inputs, groups, shifted=True)
    linear = TritonLinear.pack(weight, None, dtype)
    assert error(linear.dense(), weight.dense()) < MOST_ERROR[dtype]
    for rows in (3, 65):
        x = torch.randn((rows, inputs)).to(dtype)
        assert error(linear(x), expected(weight, x)) < MOST_ERROR[dtype]


@pytest.mark.parametrize("split", [1, 2])
def test_a_row_does_not_depend_on_the_others(split: int) -> None:
    linear = TritonLinear.pack(matrix(4, 40, 512, 4), torch.randn(40), HALF)
    linear.plan = Plan(split, default_plan(40, 1).launches)
    x = torch.randn((64, 512)).half()
    x[40:] *= 1000
    alone = [linear(x[row : row + 1])[0] for row in (0, 2, 16, 63)]
    for rows in (3, 17, 64):
        found = linear(x[:rows])
        for row, right in zip((0, 2, 16, 63), alone, strict=True):
            assert row >= rows or torch.equal(found[row], right)
    assert torch.equal(linear(x[1:3])[1], alone[1]), "in another place"


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_integer_is_unpacked_exactly(bits: int, dtype: torch.dtype) -> None:
    integers = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.int8).repeat(512 >> bits, 1)
    weight = Quantized(integers.view(2, 256).repeat(20, 1).contiguous(), torch.ones((40, 1)), bits)
    linear = TritonLinear.pack(weight, None, dtype)
    assert torch.equal(linear.dense(), weight.integers.to(dtype))
    assert torch.equal(linear.dense(3, 38), weight.integers[3:38].to(dtype))


def test_scales_of_groups_are_applied_to_their_inputs() -> None:
    weight = matrix(4, 40, 512, 16)
    assert torch.equal(TritonLinear.pack(weight, None, HALF).dense(), weight.dense(HALF))


@pytest.mark.parametrize("rows", [2, 70])
def test_act_order(rows: int) -> None:
    weight = matrix(4, 24, 256, 2, ordered=True)
    x = torch.randn((rows, 256)).half()
    assert error(TritonLinear.pack(weight, None, HALF)(x), expected(weight, x)) < MOST_ERROR[HALF]


def test_an_order_that_changes_nothing_is_dropped() -> None:
    weight = matrix(4, 24, 256, 2)
    sorted_ = Quantized(weight.integers, weight.scales, 4, torch.arange(256))
    assert TritonLinear.pack(sorted_, None, HALF).order is None


def test_many_rows_are_multiplied_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = matrix(8, 70, 128, 1), torch.randn(70)
    linear = TritonLinear.pack(weight, bias, HALF)
    x = torch.randn((65, 128)).half()
    whole = linear(x)
    assert error(whole, expected(weight, x, bias)) < MOST_ERROR[HALF]
    monkeypatch.setattr(triton_linear, "PIECE_BYTES", 2 * 128 * 32)
    assert error(linear(x), whole.float()) < MOST_ERROR[HALF]


def test_a_stride_between_rows() -> None:
    weight, wide = matrix(4, 24, 256, 2), torch.randn((3, 300)).half()
    linear = TritonLinear.pack(weight, None, HALF)
    assert torch.equal(linear(wide[:, :256]), linear(wide[:, :256].contiguous()))
    columns = wide[:, :256].t().contiguous().t()
    assert torch.equal(linear(columns), linear(wide[:, :256]))


def test_large_activations_do_not_overflow_in_bfloat16() -> None:
    weight = matrix(4, 24, 256, 2)
    x = (torch.randn((2, 256)) * 1e30).to(BRAIN)
    found = TritonLinear.pack(weight, None, BRAIN)(x)
    assert error(found / 1e30, expected(weight, x) / 1e30) < MOST_ERROR[BRAIN]


def test_what_is_packed_takes_no_more_than_its_bits() -> None:
    for bits in (4, 8):
        assert TritonLinear.pack(matrix(bits, 24, 512, 4), None, HALF).packed.nbytes == 24 * 512 * bits // 8
    per_row = TritonLinear.pack(matrix(8, 24, 512, 1), None, HALF)
    assert (per_row.scales.shape, per_row.scales.dtype) == ((1, 24), torch.float32)
    weight = matrix(4, 24, 512, 4)
    assert TritonLinear.pack(weight, None, HALF).scales.dtype == torch.float32, "half would round them"
    exact = Quantized(weight.integers, weight.scales.half().float(), 4)
    assert TritonLinear.pack(exact, None, HALF).scales.dtype == HALF


@pytest.mark.parametrize(
    ("bits", "inputs", "groups", "supported"),
    [
        (4, 576, 9, True),
        (4, 4864, 38, True),
        (8, 896, 1, True),
        (8, 32, 1, True),
        (4, 32, 1, False),  # a block has 64 inputs
        (8, 100, 1, False),
        (4, 128, 8, True),
        (4, 128, 16, False),  # groups of 8: a tensor core takes 16 inputs
        (4, 192, 2, False),  # groups of 96 end within a field
    ],
)
def test_what_is_supported(bits: int, inputs: int, groups: int, supported: bool) -> None:
    weight = matrix(bits, 8, inputs, groups)
    assert TritonLinear.supports(weight) == supported
    if not supported:
        with pytest.raises(ValueError, match=f"no kernel for {inputs} inputs"):
            TritonLinear.pack(weight, None, HALF)


def test_other_types_of_activations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float32"):
        TritonLinear.pack(matrix(4, 8, 128, 1), None, torch.float32)


# ------------------------------------------------------------------ launch shapes


def test_a_smaller_plan_has_a_stage_less_for_these_rows_alone() -> None:
    plan = Plan(2, {16: Launch(64, 4, 4), 32: Launch(64, 4, 4), 64: Launch(64, 4, 2)})
    smaller = plan.smaller(64)
    assert smaller == Plan(2, {**plan.launches, 64: Launch(64, 4, 1)})
    assert smaller is not None
    assert smaller.smaller(64) is None


def test_the_compiled_kernels_stay_in_our_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys; import pangu_server.backends.torch.kernels;"
        "assert 'triton' not in sys.modules; print(os.environ['TRITON_CACHE_DIR'])"
    )
    environment = {**os.environ, "PANGU_HOME": str(tmp_path)}
    environment.pop("TRITON_CACHE_DIR", None)

    def shown() -> str:
        output = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        )
        return output.stdout.strip()

    assert shown() == str(tmp_path / "kernels" / "triton")
    environment["TRITON_CACHE_DIR"] = "elsewhere"
    assert shown() == "elsewhere"
