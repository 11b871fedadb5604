"""Quantized models of others become artifacts of the same numbers, to the bit, or are refused by name."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import GPTQ_8, Artifacts, pangu_convert
from support.damage import DAMAGES, WEIGHTS, Tensors, copied, rewritten, sharded
from support.hub import commit_of, serve_hub, use_hub
from support.models import loaded, logits, save_model
from support.packers import AWQ, GPTQ, GPTQ_V2, PACKINGS, Packing, save_packed
from transformers import AutoModelForCausalLM

from pangu_convert import cli
from pangu_convert.adopt import AdoptOptions, adopted_artifact
from pangu_convert.artifact import read_artifact, verify
from pangu_convert.gptq_weights import load_dequantized
from pangu_convert.packed import packed_layers, scheme_of
from pangu_server.backends.torch.quantized import Quantized
from pangu_server.backends.torch.weights import open_weights
from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.errors import CheckpointError

LAYER = "model.layers.1.mlp.down_proj"
Save = Callable[[Packing], Path]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama") / "checkpoint", "llama")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Save:
    """The Llama quantized by a packing, made once."""
    return functools.cache(
        lambda packing: save_packed(llama, tmp_path_factory.mktemp("packed") / "model", packing)
    )


def adopt(folder: Path, output: Path, *arguments: str) -> Any:
    """The adopted model, its matrices plain."""
    pangu_convert("adopt", folder, "--output", output, *arguments)
    return loaded(read_artifact(output))


def refused(capsys: pytest.CaptureFixture[str], folder: object, output: Path, *arguments: str) -> str:
    """The line of a folder that is not adopted; nothing may be left of it."""
    capsys.readouterr()
    assert cli.main(["adopt", str(folder), "--output", str(output), *arguments]) == 2
    assert not output.exists()
    [*_, error] = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("pangu-convert: error: ")
    return error


def same(found: Any, folder: Path) -> bool:
    """Whether `found` has the weights of the plain checkpoint next to `folder`, to the bit."""
    stored = load_file(folder.with_name(f"{folder.name}-plain") / WEIGHTS)
    state = found.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in stored.items())


def set_quantization(folder: Path, **settings: object) -> None:
    """Change what both files say of the quantization; None removes it."""
    for file in ("config.json", "quantize_config.json"):
        if (folder / file).is_file():
            config = json.loads((folder / file).read_text())
            inner = config["quantization_config"] if file == "config.json" else config
            inner |= settings
            for key in [key for key, value in settings.items() if value is None]:
                inner.pop(key)
            (folder / file).write_text(json.dumps(config))


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_an_adopted_model_has_the_packed_numbers(packing: Packing, saved: Save, tmp_path: Path) -> None:
    folder = saved(packing)
    model = adopt(folder, tmp_path / "out")
    assert same(model, folder)
    plain = AutoModelForCausalLM.from_pretrained(folder.with_name(f"{folder.name}-plain"))
    assert torch.allclose(logits(model), logits(plain), atol=1e-4)
    artifact = read_artifact(tmp_path / "out")
    verify(artifact)
    assert torch.equal(logits(load_dequantized(artifact, torch.float32)), logits(model))
    manifest = artifact.manifest
    group = "" if packing.group_size == -1 else f"-g{packing.group_size}"
    method = "awq" if packing is AWQ or packing.method == "awq" else "gptq"
    assert manifest.quantization == f"{method}-int{packing.bits}{group}"
    assert (manifest.format, manifest.dtype, manifest.context_length) == ("gptq", "float16", 256)
    assert manifest.calibration is not None
    assert (manifest.calibration["text"], manifest.calibration["quantizer"]) == ("unknown", "unknown")
    assert manifest.source.provenance == {"source": folder.name, "adopted": True, "base_model": "unknown"}


QUANTIZE = """
import sys
import torch
from gptqmodel import GPTQModel
from gptqmodel.quantization import GPTQConfig
from safetensors.torch import save_file

checkpoint, folder, expected = sys.argv[1:]
config = GPTQConfig(
    bits=4, group_size=64, sym=False, desc_act=True, act_group_aware=False, format="gptq_v2",
    offload_to_disk=False, pack_impl="original",
)
model = GPTQModel.load(checkpoint, config, dtype=torch.float16, trust_remote_code=False)
ids = [[(7 * i + j) % 250 for j in range(32)] for i in range(4)]
model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], batch_size=1)
model.save(folder)
modules = dict(model.model.named_modules()).items()
matrices = {name: module.dequantize_weight() for name, module in modules if hasattr(module, "dequantize_weight")}
save_file({name: matrix.t().contiguous() for name, matrix in matrices.items()}, expected)
"""


def test_what_gptqmodel_wrote_is_what_it_de_quantizes(llama: Path, tmp_path: Path) -> None:
    """Its second format, asymmetric, in the order of activations; in a process of its own, as it patches others."""
    folder, expected = tmp_path / "quantized", tmp_path / "expected.safetensors"
    run = subprocess.run(
        [sys.executable, "-c", QUANTIZE, llama, folder, expected],
        cwd=tmp_path,
        env={**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    pangu_convert("adopt", folder, "--output", tmp_path / "out")
    artifact = read_artifact(tmp_path / "out")
    assert artifact.manifest.calibration is not None
    assert artifact.manifest.calibration["quantizer"].startswith("gptqmodel:7.")
    weights = open_weights(artifact)
    for name, matrix in load_file(expected).items():
        value = weights.read(f"{name}.weight")
        assert isinstance(value, Quantized)
        assert value.shifts is not None
        assert torch.equal(value.dense(torch.float16), matrix)


def test_our_own_artifact_is_adopted_as_it_is(artifacts: Artifacts, tmp_path: Path) -> None:
    """In the first format, by gptqmodel."""
    source = read_artifact(artifacts(*GPTQ_8))
    found, expected = adopt(source.path, tmp_path / "out").state_dict(), loaded(source).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert read_artifact(tmp_path / "out").manifest.quantization == "gptq-int8-g64"


def integer_damages(name: str) -> list[Callable[[Tensors, str], None]]:
    """There is no NaN of integers."""
    packed = name.endswith(("qweight", "qzeros", "g_idx"))
    return [damage for damage in DAMAGES if not (packed and damage.__name__ == "not_a_number")]


@pytest.mark.parametrize("packing", [GPTQ_V2, AWQ], ids=["gptq", "awq"])
def test_damage_to_any_tensor_is_refused_by_its_name(packing: Packing, saved: Save, tmp_path: Path) -> None:
    folder = copied(saved(packing), tmp_path / "copy")
    whole = load_file(folder / WEIGHTS)
    options = AdoptOptions(source=str(folder), output=tmp_path / "out")
    some = ("embed_tokens", "lm_head", "model.norm", "0.self_attn.q_proj", "1.mlp.down_proj")
    for name in [name for name in whole if any(part in name for part in some)]:
        for damage in integer_damages(name):
            tensors = {other: tensor.clone() for other, tensor in whole.items()}
            damage(tensors, name)
            save_file(tensors, folder / WEIGHTS, {"format": "pt"})
            with pytest.raises(CheckpointError) as caught:
                adopted_artifact(options)
            assert name.rpartition(".")[0] in str(caught.value)
            assert not options.output.exists()


@pytest.mark.parametrize("packing", [GPTQ, GPTQ_V2, AWQ], ids=["gptq", "gptq_v2", "awq"])
def test_damage_to_any_key_is_refused_or_changes_nothing(
    packing: Packing, saved: Save, llama: Path, tmp_path: Path
) -> None:
    changes: list[dict[str, object]] = [
        {key: value}
        for key in packing.config
        for value in (None, "x", 2)
        # Without it the first format is meant, and zero points tell that it is not.
        if not (key == "sym" and value in (None, 2))
    ]
    taken = 0
    folder = copied(saved(packing), tmp_path / "model")
    configs = {file: file.read_bytes() for file in folder.glob("*.json")}
    for number, change in enumerate(changes):
        for file, content in configs.items():
            file.write_bytes(content)
        set_quantization(folder, **change)
        output = tmp_path / f"out-{number}"
        try:
            checkpoint = read_checkpoint(folder, quantized=True)
            packed_layers(checkpoint, scheme_of(checkpoint))
            artifact = adopted_artifact(AdoptOptions(source=str(folder), output=output))
        except CheckpointError:
            assert not output.exists()
            continue
        taken += 1
        assert same(loaded(artifact), saved(packing))
    assert 0 < taken < len(changes)


def test_files_that_differ_are_refused(
    saved: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(saved(GPTQ), tmp_path / "copy")
    (folder / "quantize_config.json").write_text(json.dumps({**GPTQ.config, "desc_act": True}))
    assert "differ in desc_act" in refused(capsys, folder, tmp_path / "out")
    (folder / "quantize_config.json").write_text(json.dumps({**GPTQ.config, "quant_method": ["gptq"]}))
    assert "differ in quant_method" in refused(capsys, folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("packing", "file", "older"),
    [
        (AWQ, "quant_config.json", {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}),
        (GPTQ, "quantize_config.json", {**GPTQ.config, "damp_percent": 0.1, "model_name_or_path": "mine"}),
    ],
    ids=["awq", "gptq"],
)
def test_two_files_that_say_the_same_in_their_own_words(
    packing: Packing, file: str, older: dict[str, object], saved: Save, tmp_path: Path
) -> None:
    folder = copied(saved(packing), tmp_path / "copy")
    (folder / file).write_text(json.dumps(older))
    assert same(adopt(folder, tmp_path / "out"), saved(packing))


@pytest.mark.parametrize(
    ("key", "value"), [("w_bit", 8), ("q_group_size", 32), ("version", "GEMV"), ("zero_point", False)]
)
def test_what_older_words_say_is_compared(
    key: str, value: object, saved: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(saved(AWQ), tmp_path / "copy")
    (folder / "quant_config.json").write_text(json.dumps({key: value}))
    assert "quant_config.json and config.json next to it differ in " in refused(
        capsys, folder, tmp_path / "out"
    )


@pytest.mark.parametrize("packing", [GPTQ, AWQ], ids=["gptq", "awq"])
@pytest.mark.parametrize("part", ["scales", "qweight"])
@pytest.mark.parametrize("rule", [{}, {"dynamic": {"+:.*": {"bits": 8}}}], ids=["", "dynamic"])
def test_a_matrix_of_nothing_is_refused(
    packing: Packing,
    part: str,
    rule: dict[str, object],
    saved: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, name = copied(saved(packing), tmp_path / "copy"), f"{LAYER}.{part}"
    set_quantization(folder, **rule)
    rewritten(folder, lambda tensors: tensors.update({name: tensors[name][:0]}))
    assert f"the packed tensors of {LAYER} in " in refused(capsys, folder, tmp_path / "out")


METHODS = ("bitsandbytes", "fp8", "compressed-tensors", "auto-round", "hqq")
NOT_HELD: dict[str, tuple[Packing, dict[str, Any], str]] = {
    **{
        method: (GPTQ, {"quant_method": method}, f"is quantized by {method}; only GPTQ") for method in METHODS
    },
    **{f"{bits} bits": (GPTQ, {"bits": bits}, f"holds {bits} bits by gptq") for bits in (2, 3, 5)},
    "8 bits by AWQ": (AWQ, {"bits": 8}, "holds 8 bits by awq; GPTQ is read with 4 and 8, AWQ with 4"),
    **{
        version: (AWQ, {"version": version}, f"AWQ's version {version}; gemm is read")
        for version in ("gemv", "gemv_fast", "marlin", "exllama")
    },
    "marlin": (GPTQ, {"checkpoint_format": "marlin"}, "the format marlin; gptq and gptq_v2 are read"),
    "is marlin": (GPTQ, {"is_marlin_format": True}, "the format marlin; gptq"),
    "two formats": (
        GPTQ,
        {"checkpoint_format": "gptq", "format": "gptq_v2"},
        "format gptq and gptq_v2; gptq and",
    ),
    "adapter": (GPTQ, {"adapter": {"name": "lora"}}, "GPTQ with adapter"),
    "rotation": (GPTQ, {"rotation": "hadamard"}, "GPTQ with rotation"),
    "words": (GPTQ, {"pack_dtype": "int16"}, "words of int16"),
    "format": (GPTQ_V2, {"checkpoint_format": "gptq"}, "zero points of its own, and the folder says that"),
    "bits": (GPTQ, {"bits": 8}, "do not fit together as 8 bits in groups of 64"),
    "groups": (GPTQ, {"group_size": 32}, "do not fit together as 4 bits in groups of 32"),
}


@pytest.mark.parametrize("case", NOT_HELD)
def test_what_is_not_held_is_refused_by_name(
    case: str, saved: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packing, settings, message = NOT_HELD[case]
    folder = copied(saved(packing), tmp_path / "copy")
    set_quantization(folder, **settings)
    error = refused(capsys, folder, tmp_path / "out")
    assert message in error
    assert re.search("give the unquantized checkpoint|download it again|set sym to false", error)


def test_a_source_that_is_none_is_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for source, message in (
        (llama, "is not quantized: pangu-convert import takes it"),
        ("nobody", "'nobody' is neither a folder nor a hub id"),
        (tmp_path / "model.gguf", "is neither a folder nor a hub id"),
        (tmp_path / "empty", "has no config.json"),
    ):
        assert message in refused(capsys, source, tmp_path / "out")
    assert "--revision is of a hub id" in refused(capsys, llama, tmp_path / "out", "--revision", "v1")


def test_zero_points_that_programs_read_differently(
    saved: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A zero point of 0 does not fit into the first format. GPTQModel borrows from the next field, and comes back."""
    asymmetric = replace(GPTQ_V2, symmetric=False)
    folder = copied(saved(asymmetric), tmp_path / "copy")
    first = load_file(folder / WEIGHTS)[f"{LAYER}.qzeros"]

    def less(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("qzeros"):
                tensors[name][0, 0] &= ~15  # the first output's zero point is 0
                tensors[name] -= 0x11111111

    rewritten(folder, less)
    set_quantization(folder, checkpoint_format="gptq")
    assert "holds 15, which programs read differently (2**4 or 0)" in refused(
        capsys, folder, tmp_path / "out"
    )
    set_quantization(folder, meta={"quantizer": ["gptqmodel:7.6.0"]})
    pangu_convert("adopt", folder, "--output", tmp_path / "out")
    first[0, 0] &= ~15
    assert torch.equal(load_file(tmp_path / "out" / WEIGHTS)[f"{LAYER}.qzeros"], first)


def test_biases_of_zeros_are_left_out_and_others_are_not(
    saved: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(saved(GPTQ), tmp_path / "copy")
    bias = torch.zeros(64, dtype=torch.float16)
    rewritten(folder, lambda tensors: tensors.update({f"{LAYER}.bias": bias}))
    assert same(adopt(folder, tmp_path / "out"), saved(GPTQ))
    rewritten(folder, lambda tensors: tensors.update({f"{LAYER}.bias": bias + 1}))
    assert f"has a tensor {LAYER}.bias, which LlamaForCausalLM has not" in refused(
        capsys, folder, tmp_path / "no"
    )


def test_groups_that_are_not_there_are_refused(
    saved: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, group in enumerate((-1, 2)):
        folder = copied(saved(GPTQ), tmp_path / str(number))
        rewritten(folder, lambda tensors, group=group: tensors[f"{LAYER}.g_idx"].fill_(group))  # type: ignore[misc]
        assert f"{LAYER}.g_idx in " in refused(capsys, folder, tmp_path / "out")


def test_shards_and_the_names_of_autogptq(saved: Save, tmp_path: Path) -> None:
    folder = copied(saved(AWQ), tmp_path / "sharded")
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    sharded(folder, *({name: tensors[name] for name in half} for half in (names[::2], names[1::2])))
    assert same(adopt(folder, tmp_path / "out"), saved(AWQ))
    index = json.loads((tmp_path / "out" / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    assert index[f"{LAYER}.g_idx"] == index[f"{LAYER}.scales"]
    assert set(index.values()) == set(read_artifact(tmp_path / "out").manifest.weight_files)

    folder = copied(saved(GPTQ), tmp_path / "named", quantization_config=None)
    (folder / WEIGHTS).rename(folder / "gptq_model-4bit-64g.safetensors")
    assert same(adopt(folder, tmp_path / "out-2"), saved(GPTQ))


def test_old_awq_says_it_in_a_file_of_its_own(saved: Save, tmp_path: Path) -> None:
    folder = copied(saved(AWQ), tmp_path / "copy", quantization_config=None)
    old = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (folder / "quant_config.json").write_text(json.dumps(old))
    assert same(adopt(folder, tmp_path / "out"), saved(AWQ))


def test_layers_of_other_bits_and_a_packed_head(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPTQModel's `dynamic` and `lm_head`."""
    others = {LAYER: replace(GPTQ, bits=8, group_size=32), "lm_head": GPTQ}
    source = copied(llama, tmp_path / "llama")
    rewritten(
        source, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"][:256].clone()})
    )
    rewritten(
        source,
        lambda tensors: tensors.update(
            {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:256].clone()}
        ),
    )
    source = copied(source, tmp_path / "smaller", vocab_size=256)
    folder = save_packed(source, tmp_path / "model", GPTQ, others)
    set_quantization(folder, dynamic={"+:.*down_proj": {"bits": 8}}, lm_head=True)
    assert same(adopt(folder, tmp_path / "out"), folder)
    written = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert (written["lm_head"], written["dynamic"]) == (True, {"+:.*down_proj": {"bits": 8}})
    assert read_artifact(tmp_path / "out").manifest.quantization == "gptq-int4-g64+int8"
    tied = copied(folder, tmp_path / "tied", tie_word_embeddings=True)
    assert "set tie_word_embeddings to false" in refused(capsys, tied, tmp_path / "no")


def test_a_repository_of_the_hub(saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub(saved(GPTQ)) as address:
        use_hub(monkeypatch, address, tmp_path / "home")
        assert same(adopt(Path("owner/repo"), tmp_path / "out"), saved(GPTQ))
        commit = commit_of(saved(GPTQ))
        pangu_convert("adopt", "owner/repo", "--revision", commit, "--output", tmp_path / "again")
    manifests = [read_artifact(tmp_path / name).manifest for name in ("out", "again")]
    for manifest in manifests:
        assert manifest.source.provenance is not None
        assert manifest.source.provenance["commit"] == commit
        assert manifest.name == "repo"
    assert manifests[0].source.sha256 == manifests[1].source.sha256
