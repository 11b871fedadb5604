"""One reader for checkpoints: any tensor removed, renamed, doubled, reshaped or broken is refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import pangu_convert
from support.damage import DAMAGES, WEIGHTS, Tensors, copied, not_a_number, removed, rewritten, sharded
from support.models import MODELS
from transformers import AutoConfig, AutoModelForCausalLM

from pangu_convert import cli
from pangu_convert.artifact import read_artifact
from pangu_convert.conversion import require_whole
from pangu_training.stage.architecture import model_config
from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import checkpoint_hash
from pangu_training.stage.renaming import parts_by_name

MATRIX = "model.layers.1.mlp.down_proj.weight"
Make = Callable[[str], Path]


def read(folder: Path) -> str:
    """Look at all of a checkpoint, as every verb does; its hash."""
    checkpoint = read_checkpoint(folder)
    require_whole(checkpoint)
    return checkpoint_hash(checkpoint)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The last line of a command that has to exit with 2."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pangu-convert: error: ")
    return error


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("model", ["gpt_bigcode", "llama", "llama_biased", "mixtral", "qwen2"])
def test_damage_to_any_tensor_is_refused_by_its_name(
    model: str, damage: Callable[[Tensors, str], None], made: Make, tmp_path: Path
) -> None:
    folder = copied(made(model), tmp_path / "checkpoint")
    whole = load_file(folder / WEIGHTS)
    for name in whole:
        tensors = {other: tensor.clone() for other, tensor in whole.items()}
        damage(tensors, name)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        called = (name, *parts_by_name(model, {}, [name]))  # as it is stored, or as the model calls it
        assert any(text in str(caught.value) for text in called)
    save_file(whole, folder / WEIGHTS, {"format": "pt"})
    read(folder)


@pytest.mark.parametrize("model", ["gpt_bigcode", "llama"])
def test_a_tensor_in_two_files_is_refused(model: str, made: Make, tmp_path: Path) -> None:
    whole = load_file(made(model) / WEIGHTS)
    names = list(whole)
    folder = copied(made(model), tmp_path / "checkpoint")
    halves = [{name: whole[name] for name in half} for half in (names[::2], names[1::2])]
    sharded(folder, *halves)
    read(folder)
    for name in names[::2]:
        sharded(folder, halves[0], {**halves[1], name: whole[name].clone()})
        with pytest.raises(CheckpointError, match=rf"^{name} is in .* and in model-00002"):
            read(folder)


def verify(folder: Path, output: Path) -> list[object]:
    return ["verify", output.parent / "artifact", "--against", folder]


VERBS: dict[str, Callable[[Path, Path], list[object]]] = {
    "transformers": lambda folder, output: ["transformers", folder, "--output", output],
    "cast": lambda folder, output: ["transformers", folder, "--output", output, "--dtype", "bfloat16"],
    "ctranslate2": lambda folder, output: ["ctranslate2", folder, "--output", output],
    "gptq": lambda folder, output: ["gptq", folder, "--output", output],
    "import": lambda folder, output: ["import", folder, "--output", output],
    "verify": verify,
}
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda folder: rewritten(folder, lambda tensors: removed(tensors, MATRIX)),
        f"no tensor {MATRIX}",
    ),
    "missing head": (
        lambda folder: rewritten(folder, lambda tensors: removed(tensors, "lm_head.weight")),
        "no tensor lm_head.weight: its files and config.json differ; set tie_word_embeddings to true",
    ),
    "nan": (
        lambda folder: rewritten(folder, lambda tensors: not_a_number(tensors, MATRIX)),
        f"{MATRIX} in ",
    ),
    "code": (lambda folder: set_config(folder, auto_map={"AutoConfig": "code.Config"}), "(auto_map)"),
    "end tokens": (
        lambda folder: set_config(folder, "generation_config.json", eos_token_id=[]),
        "eos_token_id in",
    ),
    "layers": (lambda folder: set_config(folder, num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    **{
        method: (
            lambda folder, method=method: set_config(folder, quantization_config={"quant_method": method}),  # type: ignore[misc]
            f"quantized already ({method}): {adopted}give the unquantized checkpoint",
        )
        for method, adopted in (
            ("gptq", "serve it with pangu-convert adopt, or "),
            ("awq", "serve it with pangu-convert adopt, or "),
            ("bitsandbytes", ""),
            ("fp8", ""),
            ("compressed-tensors", ""),
        )
    },
    "old awq": (
        lambda folder: (folder / "quant_config.json").write_text('{"w_bit": 4}'),
        "quantized already (awq)",
    ),
    "adapter": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "an adapter (adapter_config.json)",
    ),
    "pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        "holds pickled weights",
    ),
}


def set_config(folder: Path, file: str = "config.json", **settings: object) -> None:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_by_name_and_leaves_nothing(
    verb: str, made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pangu_convert("transformers", made("llama"), "--output", tmp_path / "artifact")
    for number, (damage, message) in enumerate(FAULTS.values()):
        folder = copied(made("llama"), tmp_path / f"checkpoint-{number}")
        (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nConfig = 1\n")
        damage(folder)
        assert message in refused(capsys, *VERBS[verb](folder, tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ids", [[], "256", -1, [0, "1"], True, 261, [261], {}, 0.5])
def test_end_tokens_that_are_none_are_refused(ids: object, made: Make, tmp_path: Path) -> None:
    for number, file in enumerate(("config.json", "generation_config.json")):
        folder = copied(made("qwen2"), tmp_path / str(number))
        if file == "config.json":
            (folder / "generation_config.json").unlink()
        set_config(folder, file, eos_token_id=ids)
        with pytest.raises(CheckpointError, match=f"eos_token_id in .*{file} is .* from 0 to 260"):
            read(folder)


def old_buffers(tensors: Tensors) -> None:
    """What older versions of transformers stored; a mask may be infinite."""
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(float("-inf"))
    tensors["transformer.h.1.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)


@pytest.mark.parametrize("model", ["gpt_bigcode", "llama"])
def test_what_is_computed_may_be_stored_and_changes_nothing(model: str, made: Make, tmp_path: Path) -> None:
    folder = rewritten(copied(made(model), tmp_path / "checkpoint"), old_buffers)
    for number, source in enumerate((made(model), folder)):
        pangu_convert("ctranslate2", source, "--output", tmp_path / str(number), "--no-smooth")
    assert (tmp_path / "0" / "model.bin").read_bytes() == (tmp_path / "1" / "model.bin").read_bytes()


@pytest.mark.parametrize("model", ["gpt_bigcode", "qwen2_tied"])
def test_what_is_tied_may_be_stored_twice_if_it_is_the_same(model: str, made: Make, tmp_path: Path) -> None:
    def double(tensors: Tensors, less: float) -> None:
        [embedding] = [
            tensor for name, tensor in tensors.items() if name.endswith(("wte.weight", "tokens.weight"))
        ]
        tensors["lm_head.weight"] = embedding - less

    folder = copied(made(model), tmp_path / "checkpoint")
    read(rewritten(folder, lambda tensors: double(tensors, 0)))
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight and .* differ, .* set tie_word_embeddings to false"
    ):
        read(rewritten(folder, lambda tensors: double(tensors, 1)))
    set_config(folder, tie_word_embeddings=False)
    read(folder)


def test_an_index_next_to_a_whole_file_is_not_the_model(made: Make, tmp_path: Path) -> None:
    """transformers' own rule, for every verb and hash."""
    new, mixed = made("llama"), copied(made("llama"), tmp_path / "mixed")
    stale = {name: tensor + 1 for name, tensor in load_file(new / WEIGHTS).items()}
    sharded(mixed, stale)
    (mixed / WEIGHTS).write_bytes((new / WEIGHTS).read_bytes())
    assert read(mixed) == read(new)
    expected = AutoModelForCausalLM.from_pretrained(mixed).state_dict()
    assert torch.equal(expected[MATRIX], load_file(new / WEIGHTS)[MATRIX])
    for verb in (["transformers"], ["ctranslate2", "--no-smooth"], ["import"]):
        outputs = [tmp_path / f"{verb[0]}-{name}" for name in ("new", "mixed")]
        for source, output in zip((new, mixed), outputs, strict=True):
            pangu_convert(verb[0], source, "--output", output, *verb[1:])
        names = {file.name for file in outputs[0].iterdir()}
        assert names == {file.name for file in outputs[1].iterdir()}
        for name in names - {"manifest.json", "import.json"}:
            assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes()


@pytest.mark.parametrize("named", ["bfloat16", "auto", None, "torch.float16", 5])
def test_the_type_is_the_stored_one(
    named: object, made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(made("llama"), tmp_path / "checkpoint", dtype=None, torch_dtype=named)
    for verb in ("transformers", "import"):
        pangu_convert(verb, folder, "--output", tmp_path / verb)
        said = "the weights are float32, not" in capsys.readouterr().err
        assert said is (named in ("bfloat16", "torch.float16"))
        assert json.loads((tmp_path / verb / "config.json").read_text())["dtype"] == "float32"
        output = tmp_path / f"{verb}-cast"
        pangu_convert(verb, folder, "--output", output, "--dtype", "bfloat16")
        assert {tensor.dtype for tensor in load_file(output / WEIGHTS).values()} == {torch.bfloat16}
        assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    assert read_artifact(tmp_path / "transformers").manifest.dtype == "float32"
    assert read_artifact(tmp_path / "transformers-cast").manifest.dtype == "bfloat16"
    # A second time there is nothing to cast.
    pangu_convert(
        "transformers", tmp_path / "import-cast", "--output", tmp_path / "linked", "--dtype", "bfloat16"
    )
    assert (tmp_path / "linked" / WEIGHTS).samefile(tmp_path / "import-cast" / WEIGHTS)


def test_weights_of_several_types_are_said_and_cast(
    made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def halve(tensors: Tensors) -> None:
        tensors |= {name: t.to(torch.bfloat16) for name, t in tensors.items() if "norm" not in name}

    folder = rewritten(copied(made("llama"), tmp_path / "checkpoint", dtype="bfloat16"), halve)
    pangu_convert("transformers", folder, "--output", tmp_path / "out", "--dtype", "bfloat16")
    assert "of several types (bfloat16, float32): most are bfloat16" in capsys.readouterr().err
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}


def test_a_number_too_large_for_the_type_is_refused(
    made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rewritten(copied(made("llama"), tmp_path / "in"), lambda tensors: tensors[MATRIX][0].fill_(1e5))
    for verb in (["transformers", "--dtype"], ["import", "--dtype"], ["ctranslate2", "--quantization"]):
        error = refused(capsys, verb[0], folder, "--output", tmp_path / "out", verb[1], "float16")
        assert MATRIX in error
        assert "too large for float16" in error


@pytest.mark.parametrize("model", MODELS)
def test_a_config_is_read_as_transformers_reads_it(model: str, made: Make) -> None:
    ours, theirs = model_config(read_checkpoint(made(model))), AutoConfig.from_pretrained(made(model))
    assert {**theirs.to_dict(), "_name_or_path": ""} == ours.to_dict()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "does not fit into it"),
        (b"[1]", ""),
        (b'{"a": 1}', ""),
        (b'{"a": {"dtype": "X9Y", "shape": [1], "data_offsets": [0, 4]}}', "unknown type"),
        (b'{"a": {"dtype": "Q", "shape": [1], "data_offsets": [0, 4]}}', "unknown type"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "makes no sense"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "is not where"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "describes"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e9]}}', "makes no sense"),
        (b"[" * 100_000, ""),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(
    header: bytes, message: str, made: Make, tmp_path: Path
) -> None:
    folder = copied(made("llama"), tmp_path / "checkpoint")
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"1234567")
    with pytest.raises(CheckpointError, match=rf"damaged or cut short \(.*{message}"):
        read(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": 5}, {"weight_map": []}, {"weight_map": {"a": "../x"}}])
def test_an_index_that_names_no_files_is_refused(index: object, made: Make, tmp_path: Path) -> None:
    folder = copied(made("llama"), tmp_path / "checkpoint")
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        read(folder)


@pytest.mark.parametrize("settings", [{"architectures": 5}, {"architectures": "L"}, {"vocab_size": "many"}])
def test_a_config_of_other_types_is_one_line(settings: dict[str, object], made: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read(copied(made("llama"), tmp_path / "checkpoint", **settings))
