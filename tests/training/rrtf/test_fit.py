"""`pangu-train fit` learns, counts pairs right, and goes on exactly where it was killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, TESTS
from support.damage import Tensors, copied, not_a_number, removed, rewritten
from support.ranked_rows import constant_problems, write_rows
from support.signalled import run_signalled
from support.tiny import save_tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer

from pangu_training import cli
from pangu_training.rrtf.run import Run

CONFIGS = ROOT / "training" / "configs"
FSDP = TESTS / "support" / "fsdp_on_cpu.py"
CLI = "pangu_training.cli"


pytestmark = pytest.mark.usefixtures("one_thread")  # as the processes have that are compared with


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory: pytest.TempPathFactory, starcoder: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return save_tiny(folder, starcoder, "gpt_bigcode", attn_pdrop=0, resid_pdrop=0, embd_pdrop=0)


def command(data: Path, checkpoint: Path, output: Path, **options: Any) -> list[str]:
    settings = {"max_length": 128, "global_batch": 8, "epochs": 1, "learning_rate": 3e-3, **options}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["fit", str(data), "--checkpoint", str(checkpoint), "--output", str(output), *flags]


def fit(data: Path, checkpoint: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    """Run to the end in this process: the metrics."""
    assert cli.main(command(data, checkpoint, output, **options)) == 0
    assert (output / "final").is_dir()
    return Run(output).metrics


def without_epoch(entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` without the fraction of the epoch, which Trainer counts in micro-batches."""
    return {name: value for name, value in entry.items() if name != "epoch"}


def test_a_tiny_model_learns_to_rank(tmp_path: Path, tiny_starcoder: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 48)
    held_out = write_rows(tmp_path / "held-out.jsonl", 24, seed=1)
    metrics = fit(data, tiny_starcoder, tmp_path / "run", held_out=held_out, epochs=3, micro_batch=4)
    before, *_, after = (entry for entry in metrics if "held_out_ranked_right" in entry)
    assert before["step"] == 0
    assert before["held_out_ranked_right"] < 0.9
    assert after["held_out_ranked_right"] > 0.95
    assert after["held_out_rank_loss"] < before["held_out_rank_loss"] / 2
    assert after["held_out_fine_tuning_loss"] < before["held_out_fine_tuning_loss"] / 2
    steps = [entry for entry in metrics if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 19))
    assert {"grad_norm", "learning_rate", "tokens", "pairs", "epoch"} <= steps[0].keys()


@pytest.mark.parametrize("fine_tuning_loss", ["sum", "mean"])
def test_accumulation_changes_nothing(tmp_path: Path, without_dropout: Path, fine_tuning_loss: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 10)  # 8 pairs, then 2
    at_once, by_one = (
        fit(data, without_dropout, tmp_path / str(size), micro_batch=size, fine_tuning_loss=fine_tuning_loss)
        for size in (4, 1)
    )
    assert [entry["pairs"] for entry in at_once] == [8, 2]
    for one, other in zip(at_once, by_one, strict=True):
        assert without_epoch(other) == pytest.approx(without_epoch(one), rel=1e-4)
        assert one["loss"] == pytest.approx(one["rank_loss"] + one["fine_tuning_loss"], rel=1e-5)


def test_a_killed_or_stopped_run_goes_on_exactly(tmp_path: Path, tiny_starcoder: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 40)
    options = {"save_steps": 2, "epochs": 2, "micro_batch": 4, "held_out": data, "held_out_max_tokens": 8}
    options["held_out_problems"] = constant_problems(tmp_path / "problems.jsonl", 3)
    whole = fit(data, tiny_starcoder, tmp_path / "whole", **options)
    assert whole[-1]["step"] == 10

    run = Run(tmp_path / "run")
    arguments = command(data, tiny_starcoder, run.path, **options)
    killed = run_signalled(CLI, arguments, signal.SIGKILL, opening="metrics.jsonl", mode="a", times=5)
    assert killed.returncode == -signal.SIGKILL
    assert run.last_checkpoint() is not None
    (run.path / "checkpoint-99").mkdir()  # as a kill while saving leaves it

    stopped = run_signalled(CLI, arguments, signal.SIGINT, opening="metrics.jsonl", mode="a", times=2)
    assert stopped.returncode == 130, stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert run.metrics[-1]["step"] < 10
    last = run.last_checkpoint()
    assert last is not None
    assert last.name == f"checkpoint-{run.metrics[-1]['step']}", "it saves where it stops"

    assert fit(data, tiny_starcoder, run.path, **options) == whole
    board = EventAccumulator(str(run.path / "tensorboard")).Reload()
    for name in ("loss", "held_out_pass_at_1"):
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        logged = [(entry["step"], entry[name]) for entry in whole if name in entry]
        assert [step for step, _ in shown] == [step for step, _ in logged], (
            "what was done again is there once"
        )
        assert [value for _, value in shown] == pytest.approx([value for _, value in logged], rel=1e-6)
    assert [run.held_out_answers(epoch).is_file() for epoch in range(4)] == [True, True, True, False]


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, tiny_starcoder: Path) -> None:
    data, run = write_rows(tmp_path / "rows.jsonl", 8), Run(tmp_path / "run")
    metrics = fit(data, tiny_starcoder, run.path, held_out=data)
    for folder in (run.final, run.checkpoint(1)):
        shutil.rmtree(folder)
    assert fit(data, tiny_starcoder, run.path, held_out=data) == metrics


def test_a_folder_is_one_run(
    tmp_path: Path, tiny_starcoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 8)
    metrics = fit(data, tiny_starcoder, tmp_path / "run")
    assert fit(data, tiny_starcoder, tmp_path / "run") == metrics, "a finished run is left alone"
    assert cli.main(command(data, tiny_starcoder, tmp_path / "run", seed=1)) == 2
    assert "another options" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert cli.main(command(data, tiny_starcoder, tmp_path / "mine")) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 8, "micro_batch": 3}, "not a multiple of 3 pairs on 1 devices"),
        ({"max_length": 257}, "beyond the checkpoint's 256"),
        ({"max_length": 8}, "no row of .* fits"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    tmp_path: Path,
    tiny_starcoder: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 8)
    assert cli.main(command(data, tiny_starcoder, tmp_path / "run", **options)) == 2
    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert not (tmp_path / "run").exists()


def test_the_plan_alone_writes_nothing(
    tmp_path: Path, tiny_starcoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 8)
    assert cli.main([*command(data, tiny_starcoder, tmp_path / "run"), "--plan-only"]) == 0
    assert "full, sharded over 8" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_two_fsdp_processes_have_the_losses_of_one(
    tmp_path: Path, without_dropout: Path, lora_rank: int
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 24)
    options = {"micro_batch": 2, "held_out": data, "lora_rank": lora_rank, "held_out_max_tokens": 16}
    options["held_out_problems"] = constant_problems(tmp_path / "problems.jsonl", 5)  # shares of 3 and 2
    options["held_out_batch"] = 2
    one = fit(data, without_dropout, tmp_path / "one", **options)
    config = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())
    environment = {name.upper(): str(value).lower() for name, value in config["fsdp_config"].items()}
    environment |= {
        "FSDP_AUTO_WRAP_POLICY": config["fsdp_config"]["fsdp_auto_wrap_policy"],
        "FSDP_STATE_DICT_TYPE": config["fsdp_config"]["fsdp_state_dict_type"],
    }
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", FSDP),
            *command(data, without_dropout, tmp_path / "two", **options),
        ],
        env={**os.environ, **environment, "ACCELERATE_USE_FSDP": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert launched.returncode == 0, launched.stdout[-3000:]
    assert "sharded over 2" in launched.stdout
    for entry, expected in zip(Run(tmp_path / "two").metrics, one, strict=True):
        assert entry.pop("held_out_outcomes", None) == expected.pop("held_out_outcomes", None)
        assert entry == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for epoch in range(2):
        answers = (Run(tmp_path / name).held_out_answers(epoch).read_text() for name in ("one", "two"))
        assert next(answers) == next(answers), epoch


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2-nodes", "zero3", "zero3-nodes"])
def test_accelerate_takes_the_configs(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.num_processes == 8 * config.num_machines


def test_the_command_loads_no_framework_before_it_runs() -> None:
    code = "import json, sys, pangu_training.cli; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert not {"torch", "transformers", "accelerate", "peft", "tokenizers"} & set(loaded)


@pytest.mark.parametrize("damage", [removed, not_a_number], ids=lambda damage: damage.__name__)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(
    damage: Callable[[Tensors, str], None],
    tmp_path: Path,
    tiny_bytes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    checkpoint = rewritten(copied(tiny_bytes, tmp_path / "checkpoint"), lambda tensors: damage(tensors, name))
    data = write_rows(tmp_path / "rows.jsonl", 4)
    assert cli.main(command(data, checkpoint, tmp_path / "run", max_length=256)) == 2
    assert name in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "final").exists()
