"""A norm over heads, as Qwen3 has it, of queries that lie beside keys and values in one product."""

import pytest
import torch

pytest.importorskip("numba")


def test_a_norm_of_a_part_of_a_joined_product() -> None:
    from pangu_server.backends.torch.kernels.cpu_norm import CpuNorm

    torch.manual_seed(0)
    queries, _ = torch.randn(1, 3, 40).split([16, 24], dim=-1)
    heads = queries.view(1, 3, 2, 8)
    weight = torch.rand(8)
    expected = torch.nn.functional.rms_norm(heads, (8,), weight, 1e-6)
    assert torch.allclose(CpuNorm(weight, 1e-6)(heads), expected, atol=1e-6)
