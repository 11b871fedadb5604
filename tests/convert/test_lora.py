"""A LoRA adapter is merged as peft merges it, to the last bit in float32, or what is in the way is named."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import (
    ADAPTER,
    CONFIG,
    EXACT,
    Q,
    imported,
    merged_by_peft,
    refused,
    same,
    save_adapter,
    set_config,
    weights_of,
)
from support.damage import DAMAGES, WEIGHTS, Tensors, copied, sharded
from transformers import AutoModelForCausalLM

from pangu_convert import cli
from pangu_training.stage.adapter import read_adapter
from pangu_training.stage.adapter_changes import changes_of
from pangu_training.stage.architecture import located
from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.rewriting import rewrite_weights

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "DoRA": ("llama", {**Q, "use_dora": True}, "use_dora: true"),
    "biases": ("llama_biased", {**Q, "bias": "all"}, 'bias: "all"'),
    "PiSSA": ("llama", {**Q, "init_lora_weights": "pissa"}, 'init_lora_weights: "pissa"'),
    "a tied embedding": (
        "qwen2_tied",
        {"target_modules": ["embed_tokens"]},
        "changes model.embed_tokens.weight",
    ),
    "a tied head": ("qwen2_tied", {**Q, "modules_to_save": ["lm_head"]}, "changes lm_head.weight"),
    "both of a tied pair": (
        "qwen2_tied",
        {**Q, "modules_to_save": ["lm_head", "embed_tokens"]},
        "are one: save",
    ),
}
OTHER_KINDS = (
    "LOHA",
    "LOKR",
    "IA3",
    "VERA",
    "ADALORA",
    "OFT",
    "PROMPT_TUNING",
    "PREFIX_TUNING",
    "TRAINABLE_TOKENS",
    None,
)
# What a setting may be by mistake.
STRANGE = (None, 5, "x", [1], {"x": 1}, True)
Make = Callable[[str], Path]


@pytest.mark.parametrize("name", EXACT)
def test_it_is_merged_as_peft_merges_it(name: str, made: Make, adapters: Make, tmp_path: Path) -> None:
    base, adapter = made(EXACT[name][0]), adapters(name)
    merged = imported(adapter, tmp_path / "out")
    before = weights_of(base)
    assert merged.keys() == before.keys()
    assert same(merged, merged_by_peft(base, adapter))
    assert not same(merged, before)
    # The model that comes out loads, with the weights of the file.
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert same(merged, state)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_exact_is_refused(
    name: str, made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, settings, message = REFUSED[name]
    adapter = save_adapter(made(model), tmp_path / "adapter", **settings)
    assert message in refused(capsys, adapter, tmp_path / "out")


def test_other_kinds_are_refused_by_their_name(
    adapters: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, kind in enumerate(OTHER_KINDS):
        adapter = set_config(copied(adapters("plain"), tmp_path / str(number)), peft_type=kind)
        assert f"peft_type: {json.dumps(kind)}" in refused(capsys, adapter, tmp_path / "out")
    adapter = set_config(copied(adapters("plain"), tmp_path / "task"), task_type="SEQ_CLS")
    assert 'task_type: "SEQ_CLS"' in refused(capsys, adapter, tmp_path / "out")
    adapter = set_config(copied(adapters("plain"), tmp_path / "new"), use_newest_idea={"x": 1})
    assert "says use_newest_idea" in refused(capsys, adapter, tmp_path / "out")


class Merging:
    """Merges of adapters into one base, in memory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._located, self._weights = located(read_checkpoint(base)), load_file(base / WEIGHTS)

    def __call__(self, adapter: Path) -> Tensors:
        changes = changes_of(read_adapter(adapter), self._located)
        return {
            name: changes[name]()(one, 0) if name in changes else one for name, one in self._weights.items()
        }


@pytest.mark.parametrize("name", ["plain", "modules in full", "tokens", "an embedding", "a bias of B"])
def test_damage_to_any_tensor_is_refused_by_its_name(
    name: str, made: Make, adapters: Make, tmp_path: Path
) -> None:
    merging, adapter = Merging(made(EXACT[name][0])), copied(adapters(name), tmp_path / "adapter")
    whole = load_file(adapter / ADAPTER)
    for damage in DAMAGES:
        for tensor in whole:
            if damage.__name__ == "removed" and "base_layer" in tensor:
                continue  # of this there is a copy in the base
            tensors = {other: value.clone() for other, value in whole.items()}
            damage(tensors, tensor)
            save_file(tensors, adapter / ADAPTER, {"format": "pt"})
            with pytest.raises(CheckpointError) as caught:
                merging(adapter)
            assert tensor in str(caught.value), damage


def damaged_settings(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in config:
        yield key, {other: value for other, value in config.items() if other != key}
        for value in STRANGE:
            if value != config[key]:
                yield key, {**config, key: value}


def test_damage_to_any_setting_is_refused_or_exact(made: Make, adapters: Make, tmp_path: Path) -> None:
    """Refused, or without effect, or what peft makes of the same setting."""
    name = "ranks and alphas by name"
    merging, adapter = Merging(made("llama")), copied(adapters(name), tmp_path / "adapter")
    config, whole = json.loads((adapter / CONFIG).read_text()), merging(adapter)
    taken = 0
    for key, settings in damaged_settings(config):
        (adapter / CONFIG).write_text(json.dumps(settings))
        try:
            merged = merging(adapter)
        except CheckpointError:
            continue
        taken += 1
        if not same(merged, whole):
            # For peft null is a value, of which it dies.
            plain = {other: value for other, value in settings.items() if value is not None}
            (adapter / CONFIG).write_text(json.dumps(plain))
            assert same(merged, merged_by_peft(merging.base, adapter)), (key, settings.get(key))
    assert taken > 20


def test_a_pattern_that_never_ends_is_refused(
    adapters: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = set_config(copied(adapters("plain"), tmp_path / "slow"), target_modules=r"(\w*\.?)*(\w*\.?)*!")
    assert "(it takes more than 2 seconds)" in refused(capsys, adapter, tmp_path / "out")
    adapter = set_config(copied(adapters("plain"), tmp_path / "wrong"), rank_pattern={"(": 4})
    assert "such as '(' (" in refused(capsys, adapter, tmp_path / "out")


def test_a_pickle_is_not_opened(adapters: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = copied(adapters("plain"), tmp_path / "adapter")
    (adapter / ADAPTER).rename(adapter / "adapter_model.bin")
    assert "adapter_model.bin) can run code" in refused(capsys, adapter, tmp_path / "out")


def test_sums_are_rounded_once(made: Make, adapters: Make, tmp_path: Path) -> None:
    """bfloat16 weights and a small change, of which rounding the product first would leave something else."""
    base = tmp_path / "base"
    assert cli.main(["import", str(made("qwen2_tied")), "--output", str(base), "--dtype", "bfloat16"]) == 0
    adapter = adapters("plain")
    exact = imported(adapter, tmp_path / "exact", "--base", base, "--dtype", "float32")
    rounded = imported(adapter, tmp_path / "rounded", "--base", base)
    before = weights_of(base)
    for name, tensor in rounded.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, exact[name].bfloat16())
        assert exact[name].dtype == torch.float32
    assert same(exact, merged_by_peft(base, adapter))
    changed = [name for name in before if not torch.equal(before[name], rounded[name])]
    assert len(changed) == 4
    assert read_checkpoint(tmp_path / "rounded").dtype == read_checkpoint(tmp_path / "rounded").config_dtype


def test_who_loses_most_of_the_adapter_by_rounding_is_told(
    made: Make, adapters: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = set_config(copied(adapters("plain"), tmp_path / "adapter"), lora_alpha=1e-3)
    imported(adapter, tmp_path / "out", "--dtype", "bfloat16")
    assert "of what the adapter changes is left: --dtype float32" in capsys.readouterr().err
    provenance: Any = read_checkpoint(tmp_path / "out").provenance
    assert provenance["update_kept"] < 0.9
    imported(adapter, tmp_path / "whole", "--dtype", "float32")
    assert "is left" not in capsys.readouterr().err


def test_a_base_of_many_files_is_merged_file_by_file(made: Make, adapters: Make, tmp_path: Path) -> None:
    base = copied(made("llama"), tmp_path / "base")
    whole = load_file(base / WEIGHTS)
    names = list(whole)
    sharded(base, *({name: whole[name] for name in names[start::3]} for start in range(3)))
    one, many = (
        imported(adapters("modules in full"), tmp_path / name, *arguments)
        for name, arguments in (("one", ()), ("many", ("--base", base)))
    )
    assert same(one, many)
    assert sorted(file.name for file in (tmp_path / "many").glob("*.safetensors*")) == sorted(
        file.name for file in base.glob("*.safetensors*")
    )


@pytest.mark.parametrize("name", ["modules in full", "tokens", "an embedding"])
def test_blocks_come_out_as_the_whole_does(
    name: str, adapters: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = imported(adapters(name), tmp_path / "whole")
    monkeypatch.setattr("pangu_training.stage.rewriting.BLOCK_BYTES", 1000)  # three rows and some
    for tensor, block in imported(adapters(name), tmp_path / "blocks").items():
        torch.testing.assert_close(block, whole[tensor])


def test_conv1d_weights_lie_the_other_way(tmp_path: Path) -> None:
    """GPT-2's layers, which no engine here serves: the merge is tested without the import."""
    from support.scripted import byte_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    base = tmp_path / "gpt2"
    GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=261, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(base)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()).save_pretrained(base)
    adapter = save_adapter(
        base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True
    )
    checkpoint = read_checkpoint(base)
    (tmp_path / "out").mkdir()
    rewrite_weights(checkpoint, tmp_path / "out", changes_of(read_adapter(adapter), located(checkpoint)))
    merged = weights_of(tmp_path / "out")
    assert same(merged, merged_by_peft(base, adapter))
    assert not same(merged, weights_of(base))
