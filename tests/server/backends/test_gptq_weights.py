"""GPTQ's packed matrices read for the torch engine: the integers and scales that de-quantizing multiplies."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import GPTQ_4, GPTQ_8, Artifacts
from support.models import assert_same_model, changed, loaded

from pangu_convert.artifact import ArtifactError, read_artifact
from pangu_convert.gptq_weights import PACKED_TENSORS, STORED_LESS, dequantize, load_dequantized
from pangu_server.backends.torch.gptq_weights import unpack
from pangu_server.backends.torch.quantized import Quantized
from pangu_server.backends.torch.weights import open_weights


@pytest.mark.parametrize("source", [GPTQ_4, GPTQ_8])
def test_a_gptq_artifact_is_what_de_quantizing_it_gives(
    artifacts: Artifacts, source: tuple[str, ...]
) -> None:
    artifact = read_artifact(artifacts(*source))
    tensors = load_file(artifact.path / "model.safetensors")
    bits = 8 if source is GPTQ_8 else 4
    weights = open_weights(artifact)
    quantized = {name: value for name, value in weights if isinstance(value, Quantized)}
    assert quantized
    assert not weights.unpacked
    for name, value in quantized.items():
        parts = [tensors[f"{name.removesuffix('.weight')}.{part}"] for part in PACKED_TENSORS]
        assert value.bits == bits
        assert torch.equal(value.dense(), dequantize(*parts, bits=bits))
    assert any(value.order is not None for value in quantized.values()) == (source is GPTQ_8)  # act-order
    assert_same_model(loaded(artifact), load_dequantized(artifact, torch.float32))


def packed(
    bits: int, groups: int, *, act_order: bool = False, symmetric: bool = True
) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    """Random tensors of a layer in AutoGPTQ's first format; and its (outputs, inputs)."""
    outputs, inputs = 32, 128
    generator = torch.Generator().manual_seed(bits + groups)

    def words(rows: int, columns: int) -> torch.Tensor:
        high, low = (torch.randint(0, 1 << 16, (rows, columns), generator=generator) for _ in range(2))
        return (high << 16 | low).to(torch.int32)

    middle = sum(((1 << (bits - 1)) - 1) << shift for shift in range(0, 32, bits))
    zeros = torch.full((groups, outputs * bits // 32), middle, dtype=torch.int32)
    of_group = torch.arange(inputs, dtype=torch.int32) * groups // inputs
    return {
        "qweight": words(inputs * bits // 32, outputs),
        "qzeros": zeros if symmetric else words(*zeros.shape),
        "scales": torch.rand(groups, outputs, generator=generator).half(),
        "g_idx": of_group[torch.randperm(inputs, generator=generator)] if act_order else of_group,
    }, (outputs, inputs)


@pytest.mark.parametrize("less", STORED_LESS.values())
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_integers_are_those_that_de_quantizing_multiplies(
    bits: int, groups: int, act_order: bool, symmetric: bool, less: int
) -> None:
    tensors, shape = packed(bits, groups, act_order=act_order, symmetric=symmetric)
    value = unpack(**tensors, bits=bits, less=less)
    assert value is not None
    assert (value.shifts is None) == (symmetric and less == 1)
    assert (value.integers.shape, value.group, value.bits) == (shape, shape[1] // groups, bits)
    assert (value.order is None) == (groups == 1 or not act_order)
    assert torch.equal(value.dense(), dequantize(**tensors, bits=bits, less=less))


@pytest.mark.parametrize("bits", [4, 8])
def test_uneven_groups_do_not_make_a_quantized_matrix(bits: int) -> None:
    uneven, _ = packed(bits, 4)
    uneven["g_idx"][0] = 3
    assert unpack(**uneven, bits=bits) is None


def test_a_matrix_with_uneven_groups_is_unpacked_and_named(artifacts: Artifacts, tmp_path: Path) -> None:
    layer = "model.layers.1.mlp.down_proj"

    def move(weights: dict[str, torch.Tensor]) -> None:
        weights[f"{layer}.g_idx"].fill_(1)[0] = 0

    artifact = changed(artifacts(*GPTQ_8), tmp_path / "copy", move)
    weights = open_weights(artifact)
    values = dict(weights)
    assert weights.unpacked == [f"{layer}.weight"]
    tensors = load_file(artifact.path / "model.safetensors")
    expected = dequantize(*(tensors[f"{layer}.{part}"] for part in PACKED_TENSORS), bits=8)
    assert torch.equal(values[f"{layer}.weight"], expected)


@pytest.mark.parametrize("part", PACKED_TENSORS)
def test_packed_tensors_that_do_not_fit_together_are_refused(
    artifacts: Artifacts, tmp_path: Path, part: str
) -> None:
    name = f"model.layers.0.mlp.up_proj.{part}"

    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = weights[name][:-1].contiguous()

    artifact = changed(artifacts(*GPTQ_8), tmp_path / "cut", cut)
    with pytest.raises(ArtifactError, match=r"packed tensors of model\.layers\.0\.mlp\.up_proj"):
        loaded(artifact)
    artifact = changed(artifacts(*GPTQ_8), tmp_path / "without", lambda weights: weights.pop(name))
    with pytest.raises(ArtifactError, match=rf"has no tensor {name}"):
        loaded(artifact)


def test_another_gptq_format_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    artifact = changed(artifacts(*GPTQ_8), tmp_path / "copy", lambda weights: None)
    file = artifact.path / "quantize_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "checkpoint_format": "marlin"}))
    with pytest.raises(ArtifactError, match="marlin, which is not served"):
        open_weights(artifact)
