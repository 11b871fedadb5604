"""Smoothing: the same model in other numbers, of which int8 loses less."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import save_tiny
from tokenizers import Tokenizer

from pangu_convert import cli
from pangu_convert.artifact import read_artifact
from pangu_convert.ctranslate2 import write_ctranslate2
from pangu_convert.fidelity import FidelityMeter
from pangu_convert.int8 import int8_caution
from pangu_convert.scoring import CTranslate2Scorer
from pangu_convert.smoothing import int8_rounded, smoothing_factors
from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.errors import CheckpointError

ARCHITECTURES = ("gpt_bigcode", "llama", "qwen2")
NORMS = ("ln_1.weight", "ln_2.weight", "layernorm.weight")


def with_outliers(checkpoint: Path) -> Path:
    """What trained models have: a few channels far larger than the others, before attention and in the MLP."""
    weights = load_file(checkpoint / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(NORMS) or "up_proj.weight" in name:
            weight[[3, 17]] *= 40
        elif name.endswith(("bias", "embed_tokens.weight")):
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    return checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, starcoder: Tokenizer) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            biases = {"attention_bias": True, "mlp_bias": True} if architecture == "llama" else {}
            folder = tmp_path_factory.mktemp(architecture) / "checkpoint"
            made[architecture] = with_outliers(save_tiny(folder, starcoder, architecture, **biases))
        return made[architecture]

    return make


def rows(num: int, seed: int) -> list[list[int]]:
    drawn = torch.randint(1, 40_000, (num, 32), generator=torch.Generator().manual_seed(seed))
    return [list(map(int, row)) for row in drawn]


def written(
    checkpoint: Path, folder: Path, quantization: str, calibration: Sequence[Sequence[int]] = ()
) -> Path:
    folder.mkdir()
    write_ctranslate2(read_checkpoint(checkpoint), folder, quantization, calibration)
    return folder


def log_probs(folder: Path, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary], by the compute type that the weights are stored in."""
    return CTranslate2Scorer(folder, threads=1).log_probabilities(ids).clone()


def divergence(ids: list[int], expected: torch.Tensor, found: torch.Tensor) -> float:
    meter = FidelityMeter()
    meter.add(ids, expected, found)
    return meter.result().kl_mean


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_smoothed_model_is_the_same_in_float32_and_loses_less_in_int8(
    architecture: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source, calibration, (ids,) = checkpoint(architecture), rows(4, seed=2), rows(1, seed=3)
    plain = written(source, tmp_path / "plain", "float32")
    smooth = written(source, tmp_path / "smooth", "float32", calibration)
    assert (plain / "model.bin").read_bytes() != (smooth / "model.bin").read_bytes()
    expected = log_probs(plain, ids)
    # Factors are powers of two: not a bit of the outputs changes.
    assert torch.equal(log_probs(smooth, ids), expected)
    losses = [
        divergence(
            ids, expected, log_probs(written(source, tmp_path / f"int8-{len(data)}", "int8", data), ids)
        )
        for data in ((), calibration)
    ]
    assert min(losses) > 0
    if int8_caution("int8") is None:  # else products overflow, whatever the factors
        assert losses[1] < 0.7 * losses[0]


def test_factors_lessen_the_error_of_a_channel_that_is_far_larger() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(64, 32), torch.randn(48, 32)
    inputs[:, 5] *= 100

    def error(factors: torch.Tensor) -> float:
        rounded = int8_rounded(inputs / factors) @ int8_rounded(weight * factors).T
        return float((rounded - inputs @ weight.T).square().mean())

    factors = smoothing_factors((inputs,), weight)
    assert factors is not None
    assert torch.equal(factors.log2(), factors.log2().round())
    assert factors.argmax() == 5
    assert error(factors) < 0.2 * error(torch.ones(32))


def test_what_int8_holds_exactly_is_left_as_it_is() -> None:
    signs = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    assert smoothing_factors((signs,), signs) is None


def test_int8_is_smoothed_unless_told_otherwise(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint("gpt_bigcode")

    def convert(name: str, *options: str) -> Path:
        command = ["ctranslate2", str(source), "--output", str(tmp_path / name), *options]
        assert cli.main(command) == 0
        return tmp_path / name

    smooth = convert("smooth", "--samples", "3", "--sequence-length", "32", "--seed", "5")
    again = convert("again", "--samples", "3", "--sequence-length", "32", "--seed", "5")
    plain = convert("plain", "--no-smooth")
    record = read_artifact(smooth).manifest.calibration
    assert record is not None
    assert (record["method"], record["rows"]) == ("SmoothQuant", 3)
    assert (record["rows_with_hole"], record["sequence_length"], record["seed"]) == (2, 32, 5)
    assert (smooth / "model.bin").read_bytes() == (again / "model.bin").read_bytes()
    assert read_artifact(plain).manifest.calibration is None
    by_hand = written(source, tmp_path / "by-hand", "int8")
    assert (plain / "model.bin").read_bytes() == (by_hand / "model.bin").read_bytes()
    assert read_artifact(convert("float32", "--quantization", "float32")).manifest.calibration is None


def test_a_model_that_computes_nan_is_refused(starcoder: Tokenizer, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "checkpoint", starcoder, "llama")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1e38
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1 puts out NaN or infinity"):
        written(source, tmp_path / "artifact", "int8", rows(1, seed=0))
