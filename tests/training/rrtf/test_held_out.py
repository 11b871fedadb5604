"""pass@1 between epochs: the model's own greedy tokens, judged, and nothing of the training changed by it."""

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.ranked_rows import constant_problems, constant_rows
from transformers import AutoModelForCausalLM, GenerationConfig

from pangu_training import cli
from pangu_training.data.ranked import write_ranked
from pangu_training.rrtf.held_out import greedy
from pangu_training.rrtf.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [[40, 41, 42, 43, 44, 45, 46], [300], [1000, 7, 2000]]
NUM_TOKENS = 12


@pytest.mark.parametrize("checkpoint", ["tiny_starcoder", "tiny_qwen2"])
def test_tokens_are_those_of_generate(checkpoint: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()  # the checkpoint's own has a repetition penalty
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        config = GenerationConfig(
            max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        expected.append(whole[0, len(prompt) :].tolist())
    accelerator = Accelerator(cpu=True)
    with torch.no_grad():
        assert greedy(model, PROMPTS, end_ids=(), most=NUM_TOKENS, accelerator=accelerator) == expected
        [end, *_] = ends = (expected[0][4], 49151)
        answers = greedy(model, PROMPTS, end_ids=ends, most=NUM_TOKENS, accelerator=accelerator)
    assert answers[0] == expected[0][: expected[0].index(end) + 1], "its end token is the last"
    assert len(answers[1]) == NUM_TOKENS or answers[1][-1] in ends, "the others go on"


def fit(folder: Path, checkpoint: Path, rows: int, *options: object) -> Run:
    """Train on answers that are all the same program."""
    write_ranked(folder / "rows.jsonl", constant_rows(rows))
    flags = ("--global-batch", 8, "--micro-batch", 8, "--max-length", 128, "--learning-rate", 1e-2, *options)
    paths = (folder / "rows.jsonl", "--checkpoint", checkpoint, "--output", folder / "run")
    assert cli.main([str(argument) for argument in ("fit", *paths, *flags)]) == 0
    return Run(folder / "run")


@pytest.mark.parametrize(
    ("rows", "options"),
    [(64, ("--epochs", 1)), (8, ("--epochs", 2, "--lora-rank", 8, "--precision", "bf16"))],
    ids=["full", "lora"],
)
def test_pass_at_1_rises_and_the_training_stays_the_same(
    tmp_path: Path, tiny_starcoder: Path, rows: int, options: tuple[object, ...]
) -> None:
    problems = constant_problems(tmp_path / "problems.jsonl", 5)
    options = (*options, "--held-out-max-tokens", 16, "--held-out-batch", 2)
    run = fit(tmp_path, tiny_starcoder, rows, *options, "--held-out-problems", problems)
    evaluations = [entry for entry in run.metrics if "held_out_pass_at_1" in entry]
    assert [entry["epoch"] for entry in evaluations] == list(range(len(evaluations)))
    assert evaluations[0]["held_out_pass_at_1"] == 0
    assert all(sum(entry["held_out_outcomes"].values()) == 5 for entry in evaluations)
    assert run.description["held_out_problems"]["without_tests"] == 1
    answers = [json.loads(line) for line in run.held_out_answers(1).read_text().splitlines()]
    assert [row["id"] for row in answers] == [f"own/{number}" for number in range(5)]
    assert evaluations[1]["held_out_outcomes"]["passed"] == [row["outcome"] for row in answers].count(
        "passed"
    )
    if rows == 64:
        assert evaluations[1]["held_out_pass_at_1"] == 1
        assert {row["answer"] for row in answers} == {constant_rows(1)[0].chosen.text}
        assert all(row["ended"] for row in answers)

    steps = [entry for entry in run.metrics if "loss" in entry]
    run.path.rename(tmp_path / "with")
    assert fit(tmp_path, tiny_starcoder, rows, *options).metrics == steps


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"tests": "", "entry_point": ""}, (), "no problem of .* has tests"),
        ({"prompt": constant_rows(1)[0].prompt}, (), "problem 'own/0' is in .*rows.jsonl too"),
        ({}, ("--held-out-max-tokens", "250"), "lower --held-out-max-tokens"),
    ],
)
def test_what_cannot_be_judged_is_said_before_anything_is_written(
    tmp_path: Path,
    tiny_starcoder: Path,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, str],
    options: tuple[str, ...],
    message: str,
) -> None:
    write_ranked(tmp_path / "rows.jsonl", constant_rows(8))
    problems = constant_problems(tmp_path / "problems.jsonl", 1, **fields)
    arguments = ["fit", tmp_path / "rows.jsonl", "--checkpoint", tiny_starcoder, "--output", tmp_path / "run"]
    flags = ["--max-length", 128, "--global-batch", 8, "--held-out-problems", problems, *options]
    assert cli.main([str(argument) for argument in (*arguments, *flags)]) == 2
    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert not (tmp_path / "run").exists()
