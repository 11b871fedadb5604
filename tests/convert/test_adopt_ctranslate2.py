"""What CTranslate2's own converter wrote becomes an artifact, served by both engines, or is refused by name."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import pytest
from support.collector import greedy
from support.damage import copied
from support.models import loaded, save_model
from support.reference import generated
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pangu_convert import cli
from pangu_convert.artifact import ArtifactError, read_artifact, verify
from pangu_convert.ctranslate2 import write_ctranslate2
from pangu_convert.model_bin import read_model_bin
from pangu_server.backends import load_backend
from pangu_server.backends.choice import choose_engine
from pangu_server.backends.seam import LoadOptions
from pangu_training.stage.checkpoint import read_checkpoint

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json")
PROMPT = [5, 120, 7, 99, 200, 31, 64, 150, 3, 77]


def with_unknown_token(folder: Path) -> Path:
    """A checkpoint whose tokenizer has one: without it the library does not load its own files."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(
        folder, unk_token=tokenizer.eos_token, model_max_length=200
    ).save_pretrained(folder)
    return folder


def converted(checkpoint: Path, folder: Path, **options: str) -> Path:
    """What the library's converter makes of a checkpoint."""
    converter = ctranslate2.converters.TransformersConverter(str(checkpoint), copy_files=[*TEXT_FILES])
    converter.convert(str(folder), **options)
    return folder


def own_files(checkpoint: Path, folder: Path) -> Path:
    """What our converter makes of it, without a manifest."""
    folder.mkdir()
    write_ctranslate2(read_checkpoint(checkpoint), folder, "float32")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_unknown_token(save_model(tmp_path_factory.mktemp("model") / "checkpoint", "qwen2"))


@pytest.fixture(scope="module")
def stock(checkpoint: Path) -> Path:
    """Its int8 form, by the library's converter."""
    return converted(checkpoint, checkpoint.with_name("stock"), quantization="int8")


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    output = folder.with_name("out-of-nothing")
    capsys.readouterr()
    assert cli.main(["adopt", str(folder), "--output", str(output), *map(str, arguments)]) == 2
    assert not output.exists()
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_both_engines_serve_it(checkpoint: Path, stock: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert cli.main(["adopt", str(stock), "--output", str(output), "--tokenizer", str(checkpoint)]) == 0
    artifact = read_artifact(output)
    verify(artifact)
    manifest = artifact.manifest
    assert (manifest.architecture, manifest.quantization, manifest.dtype) == (
        "Qwen2ForCausalLM",
        "int8",
        "float32",
    )
    assert (manifest.context_length, manifest.end_token_ids) == (256, (0,))
    assert manifest.source.provenance == {"source": "stock", "adopted": True, "base_model": "unknown"}
    library = ctranslate2.Generator(str(stock), intra_threads=1)
    tokens = [library_tokens(library, stock)]
    del library
    tokens.append(generated(loaded(artifact), PROMPT, 16))  # activations are not rounded to int8 there
    for engine, expected in zip(("ctranslate2", "torch"), tokens, strict=True):
        backend = load_backend(artifact, LoadOptions(device="cpu", threads=1, engine=engine))  # type: ignore[arg-type]
        assert greedy(backend, PROMPT, 16, ()) == expected
        backend.close()


def library_tokens(library: ctranslate2.Generator, folder: Path) -> list[int]:
    """CTranslate2's greedy tokens."""
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    [result] = library.generate_batch(
        [[vocabulary[id] for id in PROMPT]], max_length=16, end_token=[], include_prompt_in_result=False
    )
    ids: list[int] = result.sequences_ids[0]
    return ids


def test_without_the_model_it_is_unknown_and_the_library_serves_it(checkpoint: Path, tmp_path: Path) -> None:
    folder = converted(checkpoint, tmp_path / "float32")
    assert cli.main(["adopt", str(folder), "--output", str(tmp_path / "out")]) == 0
    artifact = read_artifact(tmp_path / "out")
    assert (artifact.manifest.architecture, artifact.manifest.quantization) == ("unknown", "float32")
    assert (artifact.manifest.context_length, artifact.manifest.end_token_ids) == (200, (0,))
    options = LoadOptions(device="cpu", threads=1)
    assert choose_engine(artifact, options) == ("ctranslate2", "it alone runs an unknown architecture")
    with pytest.raises(ArtifactError, match="unknown architecture, which the torch engine cannot run"):
        choose_engine(artifact, LoadOptions(device="cpu", threads=1, engine="torch"))
    backend = load_backend(artifact, options)
    plain = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert greedy(backend, PROMPT, 16, ()) == generated(plain, PROMPT, 16)
    backend.close()


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value))


def edited(file: Path, **settings: object) -> None:
    write_json(file, {**json.loads(file.read_text()), **settings})


def broken(folder: Path) -> None:
    """NaN in a scale."""
    table = read_model_bin(folder / "model.bin")
    data = bytearray((folder / "model.bin").read_bytes())
    place = table.variables["decoder/layer_0/ffn/linear_0/weight_scale"].offset
    data[place : place + 4] = struct.pack("<f", float("nan"))
    (folder / "model.bin").write_bytes(data)


def swapped(folder: Path) -> None:
    tokens = json.loads((folder / "vocabulary.json").read_text())
    write_json(folder / "vocabulary.json", [tokens[0], tokens[2], tokens[1], *tokens[3:]])


def without_sizes(folder: Path) -> None:
    """The embeddings as a single number."""
    name = "decoder/embeddings/weight"
    variable = read_model_bin(folder / "model.bin").variables[name]
    data = (folder / "model.bin").read_bytes()
    head = data[: data.index(name.encode()) + len(name) + 1]
    number = struct.pack("<BBIB", 0, 1, 1, 0)  # no sizes, int8, one byte, which is 0
    (folder / "model.bin").write_bytes(head + number + data[variable.offset + variable.num_bytes :])


def linked_out(name: str) -> Callable[[Path], None]:
    """Makes a file of a folder a link to somebody's secret, which must not end in an artifact."""

    def damage(folder: Path) -> None:
        secret = folder.with_name("secret")
        secret.write_bytes((folder / name).read_bytes() if (folder / name).is_file() else b"a key")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "has no tokenizer.json: name the folder",
    ),
    "tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "tokenizer.json cannot be read",
    ),
    "no vocabulary": (lambda folder: (folder / "vocabulary.json").unlink(), "has no vocabulary.json"),
    "vocabulary": (lambda folder: write_json(folder / "vocabulary.json", ["a"]), "does not name 261 tokens"),
    "other vocabulary": (swapped, "give the tokenizer that it was made with"),
    "no context": (
        lambda folder: edited(folder / "tokenizer_config.json", model_max_length=10**30),
        "does not say how long its context is: name the folder of the model that it was made from with --tokenizer",
    ),
    "unknown token": (lambda folder: edited(folder / "config.json", unk_token="none"), "names no unk_token"),
    "end token": (lambda folder: edited(folder / "config.json", eos_token="none"), "names no eos_token"),
    "config": (lambda folder: (folder / "config.json").write_text("["), "config.json cannot be read"),
    "cut": (
        lambda folder: (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:-9]),
        "model.bin is damaged or cut short",
    ),
    "nan": (broken, "decoder/layer_0/ffn/linear_0/weight_scale in "),
    "embeddings": (without_sizes, "decoder/embeddings/weight in "),
    **{
        f"linked {name}": (linked_out(name), f"{name} cannot be read (it is a link to ")
        for name in ("chat_template.jinja", "config.json", "vocabulary.json", "tokenizer.json")
    },
}


@pytest.mark.parametrize("case", DAMAGES)
def test_what_is_not_whole_is_refused(
    case: str, stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "copy"))
    damage, message = DAMAGES[case]
    damage(folder)
    assert message in refused(capsys, folder)


def test_a_model_that_it_was_not_made_from_is_refused(
    checkpoint: Path, stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(checkpoint, tmp_path / "other", vocab_size=300)
    assert "is of a model with 300 tokens" in refused(capsys, stock, "--tokenizer", other)
    assert "--tokenizer is for a CTranslate2 folder" in refused(capsys, other, "--tokenizer", other)


def test_a_tokenizer_next_to_it_is_held_against_the_same_rules(
    checkpoint: Path, stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(checkpoint, tmp_path / "copy")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    many = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 100}
    write_json(folder / "tokenizer.json", {**tokenizer, "normalizer": many})
    assert "tokenizer.json cannot be used (it " in refused(capsys, stock, "--tokenizer", folder)
    linked_out("chat_template.jinja")(folder)
    assert "chat_template.jinja cannot be read (it is a link to " in refused(
        capsys, stock, "--tokenizer", folder
    )


def test_scaling_that_the_library_would_leave_out_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Llama 3's, whole in our files and half in those of the library's converter."""
    checkpoint = with_unknown_token(save_model(tmp_path / "checkpoint", "llama"))
    folder = converted(checkpoint, tmp_path / "stock")
    error = refused(capsys, folder, "--tokenizer", checkpoint)
    assert "lacks decoder/layer_0/self_attention/rotary_scaling_factor" in error
    assert error.endswith("convert the checkpoint with pangu-convert ctranslate2")
    own = own_files(checkpoint, tmp_path / "own")
    arguments = ("--tokenizer", str(checkpoint), "--output", str(tmp_path / "out"))
    assert cli.main(["adopt", str(own), *arguments]) == 0


@pytest.mark.parametrize("by", ["mistral's file", "starcoder2's config"])
def test_the_context_is_the_attention_window(
    by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library forgets the beginning of a prompt that is longer, or the file does not know of the window."""
    checkpoint = with_unknown_token(save_model(tmp_path / "checkpoint", by.partition("'")[0]))
    arguments = []
    if by == "mistral's file":
        folder = converted(checkpoint, tmp_path / "stock")
    else:
        folder = own_files(checkpoint, tmp_path / "own")
        arguments = ["--tokenizer", str(checkpoint)]
    assert cli.main(["adopt", str(folder), "--output", str(tmp_path / "out"), *arguments]) == 0
    assert read_artifact(tmp_path / "out").manifest.context_length == 64
    assert "the context is the window's 64 tokens, not 2" in capsys.readouterr().err
