"""A shape with random weights: the artifacts' form, the verb end to end on a tiny shape, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.commands import GPTQ_4, Artifacts

from pangu_bench import cli, memory, random_model
from pangu_bench.random_model import parameter_shapes, write_checkpoint, write_gptq
from pangu_bench.rows import ServedRow, read_rows
from pangu_bench.shape_table import table
from pangu_bench.shapes import SHAPES, Sizes
from pangu_convert.artifact import read_artifact, verify
from pangu_convert.gptq_weights import PACKED_TENSORS, dequantize
from pangu_training.stage.checkpoint import read_checkpoint

STARCODER = SHAPES["starcoder-15b"]
TINY = {**STARCODER, "n_embd": 128, "n_inner": 512, "n_layer": 2, "n_head": 4, "n_positions": 256}
SHAPE = "vocabulary-of-starcoder"
FEW = ("--new-tokens", "3", "--prompt-tokens", "8", "--context", "32", "--repeats", "1", "--threads", "1")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, SHAPE, TINY)


def test_starcoders_parameters_are_counted_as_published() -> None:
    sizes = Sizes.of(parameter_shapes(STARCODER))
    assert sizes.blocks + sizes.rest == 15_517_456_384
    assert sizes.blocks == 40 * 6144 * (6144 + 2 * 128 + 6144 + 2 * 24576)


def test_a_drawn_gptq_artifact_has_the_form_of_a_converted_one(artifacts: Artifacts, tmp_path: Path) -> None:
    converted = artifacts(*GPTQ_4)
    write_gptq(tmp_path / "drawn", TINY, "tiny-random", 4)
    drawn = read_artifact(tmp_path / "drawn")
    verify(drawn)

    def form(path: Path) -> dict[str, Any]:
        [file] = path.glob("*.safetensors")
        with safe_open(file, "pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
        # the rest has the checkpoint's type, here float32 and bfloat16
        return {
            name: (tensor.shape, "rest" if tensor.dtype in (torch.float32, torch.bfloat16) else tensor.dtype)
            for name, tensor in tensors.items()
        }

    def quantization(path: Path) -> Any:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        own = json.loads((path / "quantize_config.json").read_text(encoding="utf-8"))
        assert config["quantization_config"] == own
        return own

    assert form(drawn.path) == form(converted)
    assert quantization(drawn.path) == quantization(converted)
    theirs = read_artifact(converted).manifest
    assert (drawn.manifest.quantization, drawn.manifest.architecture) == (
        theirs.quantization,
        theirs.architecture,
    )
    assert drawn.manifest.calibration is not None
    assert drawn.manifest.calibration["source"] == "none: random weights"
    assert drawn.manifest.source.provenance == {"source": "tiny-random", "note": "random weights: shape only"}
    weights = load_file(next(drawn.path.glob("*.safetensors")))
    assert torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"])


@pytest.mark.parametrize("bits", [4, 8])
def test_drawn_matrices_are_those_of_a_fresh_model(bits: int, tmp_path: Path) -> None:
    write_gptq(tmp_path / "drawn", TINY, "tiny-random", bits)
    weights = load_file(next((tmp_path / "drawn").glob("*.safetensors")))
    layers = [name.removesuffix(".qweight") for name in weights if name.endswith(".qweight")]
    assert len(layers) == 8
    for layer in layers:
        matrix = dequantize(*(weights[f"{layer}.{part}"] for part in PACKED_TENSORS), bits=bits)
        assert matrix.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(matrix.mean().item()) < 0.003  # integers are one more below zero than above


def test_a_checkpoint_goes_on_with_the_shards_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_model, "SHARD_BYTES", 1_000_000)  # but the embedding is larger
    write_checkpoint(tmp_path, TINY, "tiny-random", beside_bytes=0)
    checkpoint = read_checkpoint(tmp_path)
    first, *others = checkpoint.weight_files
    assert others
    weights = {name: tensor for file in checkpoint.weight_files for name, tensor in load_file(file).items()}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == parameter_shapes(TINY)
    assert len({tensor.flatten()[0].item() for tensor in weights.values() if tensor.dim() == 2}) > 8
    before, kept = first.read_bytes(), others[0].stat().st_mtime_ns
    first.unlink()
    write_checkpoint(tmp_path, TINY, "tiny-random", beside_bytes=0)
    assert first.read_bytes() == before
    assert others[0].stat().st_mtime_ns == kept


@pytest.mark.usefixtures("tiny")
def test_formats_are_measured_once_and_stand_beside_the_paper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["shape", SHAPE, "--output", str(tmp_path), *FEW, "--formats"]
    assert cli.main([*command, "int8", "--keep"]) == 0
    capsys.readouterr()
    source = read_artifact(tmp_path / SHAPE / "int8").manifest.source
    assert source.provenance == {"source": f"{SHAPE}-random", "note": "random weights: shape only"}
    assert cli.main([*command, "gptq-4", "int8"]) == 0
    text = capsys.readouterr().out
    report = json.loads(text.splitlines()[-1])
    assert json.loads((tmp_path / f"{SHAPE}.json").read_text(encoding="utf-8")) == report
    assert text.startswith((tmp_path / f"{SHAPE}.md").read_text(encoding="utf-8"))
    assert "**Shape only: random weights.**" in text
    assert report["shape_only"] == "random weights"
    int8, gptq = report["artifacts"]
    assert [one["format"] for one in (int8, gptq)] == ["int8", "gptq-4"]
    assert int8["stored_weight_bytes"] > report["parameters"], "a byte a parameter: none is there twice"
    assert int8["conversion"]["peak_bytes"] > 0
    assert gptq["costs"]["served"]["engine"] == "torch"
    assert gptq["costs"]["served"]["kernel"] != "dequantized"
    for one in (int8, gptq):
        assert one["costs"]["latency"][0]["requests"] == 1
        assert one["costs"]["memory"]["generating_bytes"] > one["costs"]["weight_bytes"]
        assert not {"score", "pass_rates"} & one.keys()
        rows = read_rows(tmp_path / f"{SHAPE}.{one['format']}.costs.jsonl")[1]
        assert sum(isinstance(row, ServedRow) for row in rows) == 1, "what is there is not measured again"
    [ratio] = [line for line in text.splitlines() if line.startswith("| gptq-4 | ")]
    assert [ratio.split(" | ")[2], ratio.split(" | ")[4]] == ["0.603", "1.273 |"]  # 9.82 / 16.29, 42 / 33
    assert not (tmp_path / SHAPE).exists(), "the weights are deleted"

    few = {**report, "layers": 1, "artifacts": [{**one, "paper": None} for one in report["artifacts"]]}
    assert "1 of 2 layers: a trial" in table(few)
    assert "16.29" in table(report)
    assert "16.29" not in table(few)


def test_what_does_not_fit_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 12 * 10**9)
    command = ["shape", "starcoder-15b", "--output", str(tmp_path), "--device", "cpu"]
    assert cli.main([*command, "--formats", "int8", "gptq-8", "bfloat16"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "bfloat16 needs about 32.7 GB of memory to load, and 12.0 GB are free" in error
    assert "gptq-8 needs about 22.6 GB of memory to load" in error
    assert not any(tmp_path.glob("*/*")), "nothing was written"


def test_free_memory_is_less_than_all(tmp_path: Path) -> None:
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    total = int(meminfo.split()[1]) << 10
    assert 0 < memory.free_bytes("cpu") < total
