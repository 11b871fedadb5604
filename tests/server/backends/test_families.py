"""Every architecture of the table: converted, loaded and served, its greedy tokens are those of transformers."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collector import Collector
from support.reference import generated
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pangu_convert import cli
from pangu_convert.architectures import ARCHITECTURES, UNQUANTIZED
from pangu_convert.artifact import ArtifactError, read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions, SamplingOptions
from pangu_server.backends.torch.runner import heads_of

CONTEXT_TOKENS, NEW_TOKENS = 256, 24
WINDOW = {"sliding_window": 40}  # less than the prompts
HEADS = {"head_dim": 16}
NO_GROUPS = {"num_key_value_heads": None}
MODELS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "cohere": {},
    "ernie4_5": {},
    "exaone4": {**WINDOW, "sliding_window_pattern": 2},
    "gemma": HEADS,
    "gemma2": {**HEADS, **WINDOW, "query_pre_attn_scalar": 16},
    "glm4": HEADS,
    "gpt2": {},
    "granite": {
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 2.0,
    },
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "mistral": WINDOW,
    "olmo": {},
    "olmo2": {},
    "persimmon": NO_GROUPS,
    "phi": {},
    "phi3": {},
    "qwen3": HEADS,
    "seed_oss": HEADS,
    "smollm3": {},
    "starcoder2": WINDOW,
}


def save_model(kind: str, folder: Path, tokenizer: Tokenizer, **changes: Any) -> str:
    """A random checkpoint of two layers in float32; returns its architecture."""
    fields = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **changes,
    }
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        kind, **{name: value for name, value in fields.items() if value is not None}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # so that greedy tokens do not depend on the last bit of a logit
    model.save_pretrained(folder)
    end = tokenizer.id_to_token(0)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    return type(model).__name__


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_tokens_are_those_of_transformers(kind: str, tmp_path: Path, starcoder: Tokenizer) -> None:
    checkpoint, path = tmp_path / "checkpoint", tmp_path / "artifact"
    architecture = save_model(kind, checkpoint, starcoder, **MODELS[kind])
    assert ARCHITECTURES[architecture] == UNQUANTIZED
    assert cli.main(["transformers", str(checkpoint), "--output", str(path)]) == 0
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    backend = load_backend(read_artifact(path), LoadOptions(device="cpu", threads=1, engine="torch"))
    choice = random.Random(0)
    prompts = [[choice.randrange(1, 300) for _ in range(length)] for length in (5, 60, 200)]
    options = SamplingOptions(max_tokens=NEW_TOKENS, temperature=0)
    answers = [Collector() for _ in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        backend.submit(prompt, options, answer)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.ended.wait(120)
        assert answer.tokens == generated(model, prompt, NEW_TOKENS)
    backend.close()


def test_the_table_has_no_architecture_that_was_not_tried() -> None:
    tried = {
        AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(kind))].__name__ for kind in MODELS
    }
    assert tried == {name for name, formats in ARCHITECTURES.items() if formats == UNQUANTIZED}


def test_a_format_that_cannot_hold_it_names_those_that_can(
    tmp_path: Path, starcoder: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model("qwen3", tmp_path / "checkpoint", starcoder, **HEADS)
    for verb in ("ctranslate2", "gptq"):
        out = tmp_path / verb
        assert cli.main([verb, str(tmp_path / "checkpoint"), "--output", str(out)]) == 2
        assert f"is a Qwen3ForCausalLM, which can become transformers, not {verb}" in capsys.readouterr().err
        assert not out.exists()


SINKS = {**HEADS, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(("kind", "changes"), [("gpt_oss", SINKS), ("mpt", {})])
def test_attention_that_the_engine_does_not_know_is_refused(kind: str, changes: dict[str, Any]) -> None:
    """These would give wrong tokens without a word."""
    config = AutoConfig.for_model(kind, vocab_size=400, num_hidden_layers=2, hidden_size=64, **changes)
    with pytest.raises(ArtifactError, match="attention"):
        heads_of(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
