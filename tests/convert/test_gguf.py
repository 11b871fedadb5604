"""GGUF files become the models they were made from: float32 files exactly, in logits, tokens and settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from support.gguf_files import Content, gguf_content
from support.scripted import byte_tokenizer
from support.tiny import save_tiny
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pangu_convert import cli
from pangu_training.stage.checkpoint import read_checkpoint

ROWS = 300  # more rows than tokens, as Qwen has
END = 256
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def tiny(folder: Path, model_type: str, **changes: Any) -> Path:
    return save_tiny(folder, byte_tokenizer(), model_type, vocab_size=ROWS, eos_token_id=END, **changes)


def imported(gguf: Path, out: Path) -> Path:
    assert cli.main(["import", str(gguf), "--output", str(out), "--dtype", "float32"]) == 0
    return out


def logits(checkpoint: Path) -> torch.Tensor:
    ids = torch.randint(0, 256, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(
            ids
        ).logits
    return found


def with_random_biases(checkpoint: Path) -> Path:
    """A fresh model's biases are zero, and would not show that they are lost or out of order."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("architecture", "model_type", "changes"),
    [
        ("llama", "llama", {}),
        ("llama", "llama", {"tie_word_embeddings": True, "head_dim": 32, "num_key_value_heads": 4}),
        ("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", "qwen2", {}),
        ("qwen2", "qwen2", {"tie_word_embeddings": True}),
        ("starcoder", "gpt_bigcode", {"tie_word_embeddings": True}),
    ],
)
def test_a_float32_file_is_its_model_exactly(
    tmp_path: Path, architecture: str, model_type: str, changes: dict[str, Any]
) -> None:
    source = with_random_biases(tiny(tmp_path / "source", model_type, **changes))
    content = gguf_content(source, architecture)
    if "head_dim" in changes:
        content.keys["llama.attention.key_length"] = changes["head_dim"]
    out = imported(content.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    assert torch.equal(logits(out), logits(source))
    assert load_file(out / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    checkpoint = read_checkpoint(out)
    assert checkpoint.architecture == read_checkpoint(source).architecture
    assert bool(checkpoint.config["tie_word_embeddings"]) is changes.get("tie_word_embeddings", False)
    assert (checkpoint.context_length, checkpoint.end_token_ids) == (256, (END,))


def test_an_output_stored_twice_is_tied(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", "qwen2", tie_word_embeddings=True)
    content = gguf_content(source, "qwen2")
    content.tensors["output.weight"] = content.tensors["token_embd.weight"]
    out = imported(content.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    assert read_checkpoint(out).config["tie_word_embeddings"] is True
    assert torch.equal(logits(out), logits(source))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_a_smaller_type_is_near(tmp_path: Path, kind: str) -> None:
    source = tiny(tmp_path / "source", "llama")
    content = gguf_content(source, "llama").quantized(GGMLQuantizationType[kind])
    out = imported(content.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    assert torch.allclose(logits(out).softmax(-1), logits(source).softmax(-1), atol=0.02)
    origin = read_checkpoint(out).provenance
    assert origin is not None
    assert origin["quantized_source"]["tensor_types"] == {kind: 16, "F32": 5}
    assert "not the original" in origin["note"]


@pytest.mark.parametrize("rope", [LINEAR, YARN], ids=["linear", "yarn"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_scaled_positions_are_taken_over(tmp_path: Path, architecture: str, rope: dict[str, Any]) -> None:
    source = tiny(tmp_path / "source", architecture, rope_parameters=rope)
    content = gguf_content(source, architecture)
    plain = imported(content.write(tmp_path / "plain.gguf"), tmp_path / "plain")
    content.keys |= {
        f"{architecture}.rope.scaling.type": rope["rope_type"],
        f"{architecture}.rope.scaling.factor": rope["factor"],
        f"{architecture}.rope.scaling.finetuned": True,
    }
    if "original_max_position_embeddings" in rope:
        content.keys[f"{architecture}.rope.scaling.original_context_length"] = 64
    out = imported(content.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    assert torch.equal(logits(out), logits(source))
    assert not torch.allclose(logits(plain), logits(source), atol=0.01), "the scaling does nothing here"


def llama3_factors(rope: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What llama.cpp's converter stores: by what the scaling of transformers divides each frequency."""
    config = LlamaConfig(head_dim=16, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    return np.asarray(plain / scaled, dtype=np.float32)


def test_frequency_factors_are_llama_3s(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", "llama", rope_parameters=LLAMA3)
    content = gguf_content(source, "llama")
    plain = imported(content.write(tmp_path / "plain.gguf"), tmp_path / "plain")
    content.tensors["rope_freqs.weight"] = llama3_factors(LLAMA3)
    out = imported(content.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    assert torch.equal(logits(out), logits(source))
    assert read_checkpoint(out).config["rope_parameters"] == LLAMA3
    assert not torch.allclose(logits(plain), logits(source), atol=0.01), "the scaling does nothing here"


def test_any_part_names_the_whole(tmp_path: Path) -> None:
    source = tiny(tmp_path / "source", "qwen2")
    content = gguf_content(source, "qwen2")
    first = content.write(tmp_path / "tiny.gguf", tensors_per_part=10)
    assert first.name == "tiny-00001-of-00003.gguf"
    for number in (1, 3):
        part = tmp_path / f"tiny-0000{number}-of-00003.gguf"
        out = imported(part, tmp_path / f"out{number}")
        assert torch.equal(logits(out), logits(source))
        origin = read_checkpoint(out).provenance
        assert origin is not None
        assert len(origin["parts_sha256"]) == 3


def test_only_control_tokens_end_a_text(tmp_path: Path) -> None:
    # Qwen's vocabulary has "</s>" as an ordinary piece of HTML
    content: Content = gguf_content(tiny(tmp_path / "source", "qwen2"), "qwen2")
    content.keys["tokenizer.ggml.tokens"][66] = "</s>"
    content.keys["tokenizer.ggml.tokens"][67] = "<|end_of_text|>"
    content.keys["tokenizer.ggml.token_type"][67] = 3
    content.keys["tokenizer.ggml.eot_token_id"] = 70
    out = imported(content.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    assert read_checkpoint(out).end_token_ids == (END, 70, 67)


def test_the_vocabulary_is_trimmed_and_normalised(tmp_path: Path) -> None:
    out = imported(
        gguf_content(tiny(tmp_path / "source", "qwen2"), "qwen2").write(tmp_path / "tiny.gguf"),
        tmp_path / "out",
    )
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == byte_tokenizer().get_vocab_size()
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids, "Qwen2 normalises to NFC"
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644, "for a server's own user"
