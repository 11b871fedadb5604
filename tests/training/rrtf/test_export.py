"""An exported checkpoint is what was trained, and goes the whole way to a served model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.collector import greedy
from support.commands import pangu_convert
from support.ranked_rows import ranked_rows, write_rows
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from pangu_convert.artifact import read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions
from pangu_training import cli
from pangu_training.evaluation.prompt import format_prompt
from pangu_training.rrtf.run import Run
from pangu_training.stage.checkpoint import TRAINING_FACTS, read_checkpoint

NUM_TOKENS = 16


def pangu_train(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def trained(folder: Path, checkpoint: Path, *options: object) -> Path:
    data = write_rows(folder / "rows.jsonl", 16)
    flags = ("--max-length", 128, "--global-batch", 8, "--micro-batch", 4, "--epochs", 4, *options)
    assert pangu_train("fit", data, "--checkpoint", checkpoint, "--output", folder / "run", *flags) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_starcoder: Path) -> Path:
    return trained(tmp_path_factory.mktemp("trained"), tiny_starcoder, "--learning-rate", 3e-3)


def test_from_pairs_to_the_backends_greedy_tokens(run: Path, tmp_path: Path) -> None:
    checkpoint, artifact_folder = tmp_path / "tuned", tmp_path / "artifact"
    assert pangu_train("export", run, "--output", checkpoint) == 0
    pangu_convert("ctranslate2", checkpoint, "--output", artifact_folder, "--quantization", "float32")
    artifact = read_artifact(artifact_folder)
    assert artifact.manifest.name == "tuned-float32"

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    [row] = ranked_rows(1)
    [message] = [{"role": "user", "content": row.prompt}]
    prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True)["input_ids"]
    plain = Tokenizer.from_file(str(artifact_folder / "tokenizer.json"))
    assert prompt == plain.encode(format_prompt(row.prompt)).ids
    ids = torch.tensor([prompt])
    [whole] = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        pad_token_id=0,
    ).tolist()
    backend = load_backend(artifact, LoadOptions(device="cpu", threads=1))
    answer = greedy(backend, prompt, NUM_TOKENS, [0])
    backend.close()
    assert answer == whole[len(prompt) :]


def test_an_export_says_what_it_was_made_from(run: Path, tiny_starcoder: Path, tmp_path: Path) -> None:
    assert pangu_train("export", run, "--output", tmp_path / "tuned", "--name", "panda") == 0
    exported, base = read_checkpoint(tmp_path / "tuned"), read_checkpoint(tiny_starcoder)
    assert exported.config == base.config
    provenance: Any = exported.provenance
    assert provenance["source"] == "panda"
    assert provenance["data"]["used"] == 16
    assert provenance["options"]["learning_rate"] == 3e-3
    assert provenance["metrics"]["last_step"]["step"] == 8
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert card.startswith("# panda\n")
    assert provenance["data"]["sha256"] in card
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tiny_starcoder, tmp_path / "tuned")
    )
    assert before.keys() == after.keys()
    final = load_file(run / "final" / "model.safetensors")
    assert all(torch.equal(after[name], final[name]) for name in after)


def test_the_card_of_an_ablation_does_not_call_it_rrtf(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    description = json.loads((run / "run.json").read_text())
    description["options"]["rank_loss"] = "off"
    (tmp_path / "run" / "run.json").write_text(json.dumps(description))
    assert pangu_train("export", tmp_path / "run", "--output", tmp_path / "tuned") == 0
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "trained by fine-tuning on the chosen answers" in card
    assert "trained by RRTF" not in card


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_merged_as_peft_merges_it(tiny_qwen2: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.lora import Linear

    run = trained(
        tmp_path, tiny_qwen2, "--lora-rank", 4, "--learning-rate", 1e-2, "--rank-loss", "unweighted"
    )
    assert (run / "final" / "adapter_model.safetensors").stat().st_size < 1e6, "the adapter only"
    assert pangu_train("export", run, "--output", tmp_path / "tuned") == 0
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    names = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    config = LoraConfig.from_pretrained(run / "final")
    config._register_custom_module({torch.nn.Linear: Linear})  # see fit.py
    model = get_peft_model(base, config)
    set_peft_model_state_dict(model, load_file(run / "final" / "adapter_model.safetensors"))
    adapted = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    assert len(adapted) == len(names) - 1, "all linear layers but the output head"
    expected = model.merge_and_unload().state_dict()
    changed = 0
    merged, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "tuned", tiny_qwen2))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name])
        changed += not torch.equal(tensor, before[name])
    assert changed == len(adapted)

    record = json.loads((run / "final" / "training.json").read_text())
    assert set(record) == {"base", *TRAINING_FACTS}
    assert str(tmp_path) not in json.dumps(record), "nothing of the machine"
    # The adapter knows its base, and `pangu-convert import` merges it alike.
    pangu_convert("import", run / "final", "--output", tmp_path / "imported")
    imported = load_file(tmp_path / "imported" / "model.safetensors")
    assert all(torch.equal(tensor, imported[name]) for name, tensor in merged.items())
    provenance: Any = read_checkpoint(tmp_path / "imported").provenance
    assert provenance["base"]["checked"] is True
    assert provenance["adapter"]["training"]["data"]["used"] == 16


def test_what_is_not_finished_or_not_its_base_is_refused(
    run: Path, tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pangu_train("export", run, "--checkpoint", tiny_qwen2, "--output", tmp_path / "tuned") == 2
    assert "is not the checkpoint" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("final"))
    assert json.loads((tmp_path / "unfinished" / "run.json").read_text()) == Run(run).description
    assert pangu_train("export", tmp_path / "unfinished", "--output", tmp_path / "tuned") == 2
    assert "not a finished run" in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()
