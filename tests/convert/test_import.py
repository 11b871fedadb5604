"""Imports: what goes in comes out, and what cannot is refused with one line and no debris."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
from safetensors.torch import load_file
from support.hub import commit_of, serve_hub, use_hub
from support.tiny import save_tiny
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pangu_convert import cli
from pangu_training.stage.checkpoint import read_checkpoint

TOKENS_IN_FILE = 300  # more rows than tokens, as Qwen has


@pytest.fixture(scope="module")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.scripted import byte_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "tiny-qwen2"
    return save_tiny(folder, byte_tokenizer(), "qwen2", vocab_size=TOKENS_IN_FILE, eos_token_id=256)


def write_gguf(path: Path, checkpoint: Path, *, tied: bool, **changes: Any) -> Path:
    """Write a Qwen2 checkpoint as GGUF: matrices Q8_0, vectors float32, the embedding repeated if `tied`."""
    fields = {"architecture": "qwen2", "pre": "qwen2", **changes}
    config = json.loads((checkpoint / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    writer = GGUFWriter(path, fields["architecture"])
    writer.add_name("Tiny")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields["pre"])
    padding = [f"[PAD{token_id}]" for token_id in range(size, TOKENS_IN_FILE)]
    writer.add_token_list([*(tokenizer.id_to_token(token_id) for token_id in range(size)), *padding])
    writer.add_token_types([3 if token_id == 256 else 1 for token_id in range(TOKENS_IN_FILE)])
    writer.add_eos_token_id(256)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "model.layers.": "blk.",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    tensors = load_file(checkpoint / "model.safetensors")
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for name, tensor in tensors.items():
        for original, renamed in names.items():
            name = name.replace(original, renamed)
        data = tensor.numpy()
        if data.ndim == 2:
            q8_0 = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quants.quantize(data, q8_0), raw_shape=None, raw_dtype=q8_0)
        else:
            writer.add_tensor(name, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_becomes_the_model_it_was_made_from(tmp_path: Path, tiny_qwen2: Path, tied: bool) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", tiny_qwen2, tied=tied)
    assert cli.main(["import", str(gguf), "--output", str(tmp_path / "out"), "--dtype", "float32"]) == 0

    checkpoint = read_checkpoint(tmp_path / "out")
    assert checkpoint.architecture == "Qwen2ForCausalLM"
    assert checkpoint.end_token_ids == (256,)
    assert checkpoint.context_length == 256
    assert checkpoint.config["rope_theta"] == checkpoint.config["rope_parameters"]["rope_theta"]
    assert bool(checkpoint.config["tie_word_embeddings"]) is tied
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is not tied
    origin = checkpoint.provenance
    assert origin is not None
    assert origin["quantized_source"]["type"] == "Q8_0"
    assert "not the original" in origin["note"]

    source = AutoModelForCausalLM.from_pretrained(tiny_qwen2)
    if tied:
        source.lm_head.weight = source.model.embed_tokens.weight
    ids = torch.tensor([[5, 77, 200, 13]])
    with torch.inference_mode():
        expected = source(ids).logits.softmax(-1)
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits.softmax(-1)
    assert torch.allclose(found, expected, atol=0.02)  # what 8-bit blocks lose
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 261
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids, "Qwen2 normalises to NFC"
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644, "for a server's own user"


def test_weights_come_out_in_bfloat16_by_default(tmp_path: Path, tiny_qwen2: Path) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", tiny_qwen2, tied=False)
    assert cli.main(["import", str(gguf), "--output", str(tmp_path / "out")]) == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_folder_is_linked_not_copied(tmp_path: Path, tiny_starcoder: Path) -> None:
    assert cli.main(["import", str(tiny_starcoder), "--output", str(tmp_path / "out")]) == 0
    imported, source = tmp_path / "out" / "model.safetensors", tiny_starcoder / "model.safetensors"
    assert imported.stat().st_ino == source.stat().st_ino
    assert read_checkpoint(tmp_path / "out").provenance is not None


def test_a_folder_is_cast_when_asked(tmp_path: Path, tiny_starcoder: Path) -> None:
    out = tmp_path / "out"
    assert cli.main(["import", str(tiny_starcoder), "--output", str(out), "--dtype", "bfloat16"]) == 0
    source, cast = load_file(tiny_starcoder / "model.safetensors"), load_file(out / "model.safetensors")
    assert source.keys() == cast.keys()
    for name, tensor in source.items():
        assert torch.equal(cast[name], tensor.to(torch.bfloat16))
    assert read_checkpoint(out).dtype == "bfloat16"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run an import that must exit 2 with one line, which is returned, and leave nothing."""
    *rest, output = arguments
    assert cli.main([*map(str, rest), "--output", str(output)]) == 2
    assert not Path(str(output)).exists()
    assert not list(Path(str(output)).parent.glob(".*"))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pangu-convert: error: ")
    return error


def test_what_is_no_model_is_refused(
    tmp_path: Path, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "new" / "out"
    text = tmp_path / "in" / "notes.txt"
    text.write_text("hello")
    assert "not a GGUF file" in refused(capsys, "import", text, out)
    gguf = write_gguf(tmp_path / "in" / "tiny.gguf", tiny_qwen2, tied=False)
    gguf.write_bytes(gguf.read_bytes()[:100_000])
    assert "damaged or cut short" in refused(capsys, "import", gguf, out)
    assert "neither a file, a folder" in refused(capsys, "import", "no such thing", out)
    gemma = write_gguf(tmp_path / "in" / "gemma.gguf", tiny_qwen2, tied=False, architecture="gemma")
    assert "architecture 'gemma'; GGUF import takes llama, qwen2" in refused(capsys, "import", gemma, out)
    odd = write_gguf(tmp_path / "in" / "odd.gguf", tiny_qwen2, tied=False, pre="novel")
    assert "tokenizer (gpt2, novel) is not one of" in refused(capsys, "import", odd, out)


@pytest.mark.real_model
def test_the_real_model_says_that_it_was_quantized_before(smollm2: Path) -> None:
    origin = read_checkpoint(smollm2).provenance
    assert origin is not None
    assert origin["quantized_source"]["type"] == "Q4_1"
    assert origin["source"] == "smollm2-135m"
    assert origin["licence"] == "Apache-2.0"


@pytest.mark.parametrize("file", ["q8/tiny.gguf", "q8/tiny-00001-of-00001.gguf"])
def test_a_gguf_file_of_the_hub_is_imported_by_its_path(
    file: str, tmp_path: Path, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository" / "q8").mkdir(parents=True)
    write_gguf(tmp_path / "repository" / file, tiny_qwen2, tied=True)
    (tmp_path / "repository" / "other.gguf").write_bytes(b"not asked for")
    with serve_hub(tmp_path / "repository") as address:
        use_hub(monkeypatch, address, tmp_path / "home")
        assert cli.main(["import", f"owner/repo/{file}", "--output", str(tmp_path / "out")]) == 0
    origin = read_checkpoint(tmp_path / "out").provenance
    assert origin is not None
    assert (origin["source"], origin["path"]) == ("owner/repo", file)
    assert origin["commit"] == commit_of(tmp_path / "repository")
    assert origin["quantized_source"]["type"] == "Q8_0"
    assert not list((tmp_path / "home").rglob("other.gguf"))
