"""Only code is learnt, nothing is longer than allowed, and padding, prompt and company change no loss."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.ranked_rows import ranked_rows
from support.tiny import tiny_config
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from pangu_convert.rendering import Renderer
from pangu_training.data.ranked import RankedRow
from pangu_training.evaluation.prompt import chat_template, format_prompt
from pangu_training.rrtf.loss import PairLosses
from pangu_training.rrtf.pairs import Pair, PairTokenizer, collate
from pangu_training.rrtf.trainer import pair_losses
from pangu_training.stage.checkpoint import read_checkpoint

[ROW] = ranked_rows(1)


@pytest.fixture(scope="module")
def tokenizer(tiny_starcoder: Path) -> PairTokenizer:
    return PairTokenizer(read_checkpoint(tiny_starcoder))


def pair_of(tokenizer: PairTokenizer, row: RankedRow, max_length: int = 256) -> Pair:
    pair = tokenizer.pair(row, max_length)
    assert pair is not None
    return pair


def test_prompt_code_and_end(tokenizer: PairTokenizer, starcoder: Tokenizer) -> None:
    pair = pair_of(tokenizer, ROW)
    assert starcoder.decode(pair.prompt) == f'"""\n{ROW.prompt}\n"""\n'
    assert starcoder.decode(pair.chosen, skip_special_tokens=False) == ROW.chosen.text + "<|endoftext|>"
    assert starcoder.decode(pair.rejected, skip_special_tokens=False) == ROW.rejected.text + "<|endoftext|>"
    assert pair.score_gap == ROW.chosen.score - ROW.rejected.score


def test_names_of_special_tokens_stay_text(tokenizer: PairTokenizer) -> None:
    row = replace(ROW, prompt="What is <|endoftext|>?", chosen=replace(ROW.chosen, text="'<fim_prefix>'"))
    pair = pair_of(tokenizer, row)
    assert all(token_id > 18 for token_id in pair.prompt + pair.chosen[:-1])
    assert pair.chosen[-1] == 0


def test_a_tokenizer_that_cuts_and_fills_does_neither(
    tokenizer: PairTokenizer, starcoder: Tokenizer, tiny_starcoder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_starcoder, tmp_path / "checkpoint"))
    cutting = Tokenizer.from_str(starcoder.to_str())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=99)
    cutting.save(str(folder / "tokenizer.json"))
    assert PairTokenizer(read_checkpoint(folder)).pair(ROW, 256) == tokenizer.pair(ROW, 256)


def test_a_chosen_answer_fits_whole_and_a_rejected_one_is_cut(tokenizer: PairTokenizer) -> None:
    pair = pair_of(tokenizer, replace(ROW, rejected=replace(ROW.rejected, text=ROW.rejected.text * 9)))
    fitting = len(pair.prompt) + len(pair.chosen)
    cut = pair_of(
        tokenizer, replace(ROW, rejected=replace(ROW.rejected, text=ROW.rejected.text * 9)), fitting
    )
    assert cut.chosen == pair.chosen
    assert cut.rejected == pair.rejected[: len(pair.chosen)]
    assert tokenizer.pair(ROW, fitting - 1) is None


def test_a_batch_is_padded_on_the_right_and_marks_what_is_learnt(tokenizer: PairTokenizer) -> None:
    pairs = tokenizer.pairs(ranked_rows(3), 256)
    batch = collate(pairs)
    rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    for row, (prompt, answer) in enumerate(rows):
        assert batch["input_ids"][row, : len(prompt) + len(answer)].tolist() == prompt + answer
        assert batch["attention_mask"][row].sum() == len(prompt) + len(answer)
        assert batch["is_answer"][row].nonzero().flatten().tolist() == [
            *range(len(prompt), len(prompt) + len(answer))
        ]


def losses(model: AutoModelForCausalLM, pairs: list[Pair]) -> PairLosses:
    with torch.no_grad():
        return pair_losses(model, collate(pairs), rank="score-gap", fine_tuning="sum")


@pytest.mark.parametrize("architecture", ["gpt_bigcode", "llama", "qwen2"])
def test_losses_in_a_batch_are_those_by_the_formula(architecture: str, tokenizer: PairTokenizer) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, 49152)).eval()
    pairs = tokenizer.pairs(ranked_rows(6), 256)

    def mean_log_prob(prompt: list[int], answer: list[int]) -> Tensor:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return -functional.cross_entropy(logits, torch.tensor(answer))

    p_tea = torch.stack([mean_log_prob(pair.prompt, pair.chosen) for pair in pairs])
    p_stu = torch.stack([mean_log_prob(pair.prompt, pair.rejected) for pair in pairs])
    gap = torch.tensor([pair.score_gap for pair in pairs])
    found = losses(model, pairs)
    torch.testing.assert_close(found.rank, gap * (p_stu - p_tea).clamp(min=0), rtol=1e-4, atol=1e-5)
    lengths = torch.tensor([len(pair.chosen) for pair in pairs])
    torch.testing.assert_close(found.fine_tuning, -p_tea * lengths, rtol=1e-4, atol=1e-5)
    assert found.ranked_right.bool().tolist() == (p_tea > p_stu).tolist()
    assert 0 < found.ranked_right.sum() < len(pairs), "the rows must make a difference"


MESSAGES = [
    {"role": "system", "content": "Write Python."},
    {"role": "user", "content": '  Add """two""" numbers.\n'},
    {"role": "assistant", "content": "def add(a, b):\n    return a + b\n"},
    {"role": "user", "content": "Now three."},
]


def test_the_chat_template_is_the_training_prompt() -> None:
    template = Renderer({"default": chat_template("", "<|endoftext|>")}, {})
    assert template.render(MESSAGES[1:2]) == format_prompt(MESSAGES[1]["content"])
    assert template.render(MESSAGES[1:2]) == "\"\"\"\nAdd '''two''' numbers.\n\"\"\"\n"
    conversation = template.render(MESSAGES)
    first = format_prompt("Write Python.\n\n" + MESSAGES[1]["content"])
    assert conversation == first + MESSAGES[2]["content"] + "<|endoftext|>" + format_prompt("Now three.")


def test_a_template_starts_with_what_the_tokenizer_starts_with() -> None:
    assert "{{ '<s>' }}" in chat_template("<s>", "</s>")
