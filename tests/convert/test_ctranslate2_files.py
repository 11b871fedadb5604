"""Streaming into CTranslate2's files: the bytes of its own converter, in the memory of one weight."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
import transformers
from ctranslate2.converters import TransformersConverter
from ctranslate2.converters import transformers as loaders
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pangu_convert import checkpoint_variable, cli
from pangu_convert.artifact import read_artifact
from pangu_convert.ctranslate2 import QUANTIZATIONS, write_ctranslate2
from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.errors import CheckpointError

FILES = ("model.bin", "config.json", "vocabulary.json")
LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# Model name -> its configuration's class, settings, and the type of its weights.
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt_bigcode": (
        "GPTBigCodeConfig",
        {"n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 256, "multi_query": True},
        "bfloat16",
    ),
    "llama": (
        "LlamaConfig",
        {**LLAMA_LIKE, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        "float32",
    ),
    "llama_biased": (
        "LlamaConfig",
        {
            **LLAMA_LIKE,
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
        "bfloat16",
    ),
    "qwen2": (
        "Qwen2Config",
        {**LLAMA_LIKE, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "float16",
    ),
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and three special ones: 259, less than the 272 rows of the models' embeddings."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tiny = Tokenizer(models.BPE(vocab={text: row for row, text in enumerate(alphabet)}, merges=[]))
    tiny.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tiny.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def save_tiny(path: Path, name: str, *, tied: bool = True, sharded: bool = False, **settings: Any) -> Path:
    """A random checkpoint of `MODELS[name]`: half of its vectors drawn, half left as they start (0 or 1)."""
    class_name, defaults, dtype = MODELS[name]
    config = getattr(transformers, class_name)(
        vocab_size=272, tie_word_embeddings=tied, eos_token_id=1, bos_token_id=0, **{**defaults, **settings}
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1 and ".0." in parameter_name:
                parameter.normal_()
            elif parameter.dim() == 1 and "ln_f" in parameter_name:
                parameter.neg_()  # ln_f.bias becomes -0, which equals the other biases' 0
            elif parameter.dim() == 2:
                parameter[3] = 0
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size="40KB" if sharded else "1GB")
    tokenizer().save_pretrained(path)
    assert (path / "model.safetensors").is_file() != sharded
    return path


def stock(checkpoint: Path, quantization: str, folder: Path) -> Path:
    """What CTranslate2's own converter makes of `checkpoint`."""
    converter = TransformersConverter(str(checkpoint), low_cpu_mem_usage=True)
    converter.convert(str(folder), quantization=quantization)
    return folder


def stream(checkpoint: Path, quantization: str, folder: Path) -> Path:
    """What we make of `checkpoint`."""
    folder.mkdir()
    write_ctranslate2(read_checkpoint(checkpoint), folder, quantization)
    return folder


def assert_same_files(checkpoint: Path, quantization: str, folder: Path) -> None:
    """Both converters write the same bytes."""
    expected = stock(checkpoint, quantization, folder / "stock")
    found = stream(checkpoint, quantization, folder / "stream")
    assert {file.name for file in found.iterdir()} == set(FILES)
    for name in FILES:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`save_tiny` that makes each checkpoint once."""
    made: dict[str, Path] = {}

    def make(name: str, **settings: bool) -> Path:
        key = f"{name}-{settings}"
        if key not in made:
            made[key] = save_tiny(tmp_path_factory.mktemp(name) / "checkpoint", name, **settings)
        return made[key]

    return make


@pytest.fixture(autouse=True)
def no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """CTranslate2's loaders collect garbage after each layer: most of the time of a tiny conversion."""
    monkeypatch.setattr(loaders.gc, "collect", lambda: 0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read tiny weights in several blocks too."""
    monkeypatch.setattr(checkpoint_variable, "BLOCK_BYTES", 1000)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied-one-file", "untied-sharded"])
@pytest.mark.parametrize("name", MODELS)
def test_files_are_those_of_the_stock_converter(
    name: str, tied: bool, quantization: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    assert_same_files(tiny(name, tied=tied, sharded=not tied), quantization, tmp_path)


@pytest.mark.parametrize("name", ["gpt_bigcode", "qwen2"])
def test_tied_embeddings_may_be_stored_twice(name: str, tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", name, tied=False)
    weights = load_file(checkpoint / "model.safetensors")
    embeddings = next(key for key in weights if key.endswith(("wte.weight", "embed_tokens.weight")))
    weights["lm_head.weight"] = weights[embeddings].clone()
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert_same_files(checkpoint, "int8", tmp_path)
    assert (tmp_path / "stream" / "model.bin").stat().st_size < 272 * 64 + 200_000


def test_the_embeddings_may_be_stored_under_the_name_of_the_head(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert_same_files(checkpoint, "int8", tmp_path)


def test_weights_that_differ_in_their_last_element_only_are_kept_apart(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    edit_weights(checkpoint, lambda weights: weights[NORM][-1].fill_(2))
    assert_same_files(checkpoint, "int8", tmp_path)


@pytest.mark.parametrize("named", ["bfloat16", "auto", None])
def test_weights_are_read_as_they_are_stored(tmp_path: Path, named: str | None) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")  # stored in float32
    found = stream(checkpoint, "int8", tmp_path / "before")
    edit_config(checkpoint, dtype=named)
    again = stream(checkpoint, "int8", tmp_path / "after")
    for name in FILES:
        assert (found / name).read_bytes() == (again / name).read_bytes()


def test_a_configuration_of_transformers_4_is_understood(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    edit_config(
        checkpoint,
        dtype=None,
        torch_dtype="float32",
        rope_parameters=None,
        rope_theta=250000.0,
        rope_scaling={"type": "linear", "factor": 2.0},
    )
    assert_same_files(checkpoint, "int8_float16", tmp_path)
    assert np.float32(250000).tobytes() in (tmp_path / "stream" / "model.bin").read_bytes()


@pytest.mark.parametrize("rope", [LLAMA3, {**LLAMA3, "low_freq_factor": 1}], ids=["floats", "whole-number"])
def test_llama3_rope_scaling_computes_what_the_model_computes(rope: dict[str, Any], tmp_path: Path) -> None:
    # The stock converter's file is not the model here: it leaves out two of the four numbers.
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama", rope_parameters=rope, initializer_range=0.2)
    ids = torch.randint(0, 256, (1, 200))
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        expected = model(ids).logits[0].numpy()
    assert np.abs(logits(stream(checkpoint, "float32", tmp_path / "stream"), ids) - expected).max() < 1e-3
    if rope is LLAMA3:
        assert np.abs(logits(stock(checkpoint, "float32", tmp_path / "stock"), ids) - expected).max() > 1e-1


def test_a_tokenizer_without_an_unknown_token_gives_a_model_that_loads(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "gpt_bigcode")
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    del settings["unk_token"]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    folder = stream(checkpoint, "int8", tmp_path / "stream")
    assert json.loads((folder / "config.json").read_text())["unk_token"] == ""
    ctranslate2.Generator(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("quantization", "dtype"), [("int8", "bfloat16"), ("int8_float16", "float16"), ("int16", "float32")]
)
def test_the_manifest_names_the_type_of_what_is_not_quantized(
    quantization: str, dtype: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint, output = tiny("gpt_bigcode", tied=True, sharded=False), tmp_path / "artifact"
    command = ["ctranslate2", checkpoint, "--output", output, "--quantization", quantization]
    assert cli.main([str(argument) for argument in command]) == 0
    assert read_artifact(output).manifest.dtype == dtype


def test_threads_of_torch_are_as_before(tiny: Callable[..., Path], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    stream(tiny("llama", tied=True, sharded=False), "int8", tmp_path / "stream")
    assert torch.get_num_threads() == before


def logits(folder: Path, ids: torch.Tensor) -> Any:
    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type="float32", intra_threads=1)
    lengths = ctranslate2.StorageView.from_array(np.array([ids.shape[1]], np.int32))
    batch = ctranslate2.StorageView.from_array(ids.numpy().astype(np.int32))
    return np.array(generator.forward_batch(batch, lengths))[0]


def edit_config(checkpoint: Path, **settings: Any) -> None:
    """Set `settings` in config.json; None removes a key."""
    path = checkpoint / "config.json"
    config = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(checkpoint: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    edit(weights)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop(DOWN), f"no tensor {DOWN}"),
        (lambda weights: weights.pop("lm_head.weight"), r"no tensor lm_head\.weight"),
        (
            lambda weights: weights.update({NORM: torch.ones(65)}),
            rf"{NORM} in .* has shape \[65\] .* asks for \[64\]",
        ),
        (lambda weights: weights.update({NORM: torch.ones(64, dtype=torch.int8)}), f"{NORM} .* type I8"),
        (lambda weights: weights[DOWN][5].fill_(float("nan")), f"{DOWN} holds NaN"),
        (lambda weights: weights[DOWN][5].fill_(float("-inf")), f"{DOWN} holds NaN or infinity"),
    ],
    ids=["missing", "missing-head", "shape", "integers", "nan", "infinity"],
)
def test_a_bad_tensor_is_named(
    edit: Callable[[dict[str, torch.Tensor]], object], message: str, tmp_path: Path
) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama", tied=False)
    edit_weights(checkpoint, edit)
    with pytest.raises(CheckpointError, match=message):
        stream(checkpoint, "int8", tmp_path / "stream")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("qwen2", {"rope_parameters": {**LLAMA3, "rope_type": "yarn"}}, "RoPE scaling of type 'yarn'"),
        ("qwen2", {"rope_parameters": LLAMA3}, "RoPE scaling of type 'llama3'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("llama", {"rope_parameters": {**LLAMA3, "rope_type": "dynamic"}}, "RoPE scaling of type 'dynamic'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (
            "llama",
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"quantized already \(gptq\)",
        ),
        ("llama", {"model_type": "mistral"}, "names LlamaForCausalLM but describes a mistral"),
        ("llama", {"num_hidden_layers": "two"}, "describes no model .*num_hidden_layers"),
        ("gpt_bigcode", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06"),
        (
            "gpt_bigcode",
            {"activation_function": "mish"},
            "does not .*: .*mish|does not .*mish",
        ),
        ("gpt_bigcode", {"vocab_size": 200}, r"wte\.weight .* shape \[272, 64\]"),
    ],
)
def test_a_configuration_that_would_be_lost_is_refused(
    name: str, settings: dict[str, Any], message: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in tiny(name, tied=True, sharded=False).iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    edit_config(checkpoint, **settings)
    with pytest.raises(CheckpointError, match=message):
        stream(checkpoint, "int8", tmp_path / "stream")


def test_heads_of_another_size_are_refused(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama", head_dim=32)
    with pytest.raises(CheckpointError, match="head_dim = 32"):
        stream(checkpoint, "int8", tmp_path / "stream")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        stream(checkpoint, "int8", tmp_path / "stream")


def peak_bytes(checkpoint: Path, quantization: str, folder: Path) -> int:
    """The most memory that a process of its own had resident while converting.

    Not `ru_maxrss`: that begins with what the parent, this test run, had.
    """
    program = (
        "import sys; from pathlib import Path\n"
        "from pangu_convert.ctranslate2 import write_ctranslate2\n"
        "from pangu_training.stage.checkpoint import read_checkpoint\n"
        "checkpoint, quantization, folder = sys.argv[1:]\n"
        "Path(folder).mkdir(parents=True)\n"
        "write_ctranslate2(read_checkpoint(Path(checkpoint)), Path(folder), quantization)\n"
        "print(Path('/proc/self/status').read_text())\n"
    )
    command = [sys.executable, "-c", program, str(checkpoint), quantization, str(folder)]
    output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", output)
    return int(kibibytes) * 1024


def test_peak_memory_is_that_of_a_weight_not_of_the_model(tmp_path: Path) -> None:
    wide: dict[str, Any] = {"n_embd": 512, "n_inner": 2048, "n_head": 8}
    small = save_tiny(tmp_path / "small", "gpt_bigcode")
    large = save_tiny(tmp_path / "large", "gpt_bigcode", **wide, n_layer=24)
    model_bytes = (large / "model.safetensors").stat().st_size
    assert model_bytes > 120e6
    baseline_bytes = peak_bytes(small, "float32", tmp_path / "small-artifact")
    growth_bytes = peak_bytes(large, "float32", tmp_path / "large-artifact") - baseline_bytes
    # Twice the checkpoint is written, being float32; the largest weight takes 4 MB of that.
    assert (tmp_path / "large-artifact" / "model.bin").stat().st_size > 240e6
    assert growth_bytes < 40e6
