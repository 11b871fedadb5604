"""The figures of fidelity against answers known by hand, and the verb on artifacts good and broken."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Artifacts, pangu_convert
from support.tiny import save_tiny
from tokenizers import Tokenizer

from pangu_convert import cli
from pangu_convert.answers import CHATS, HOLES, asked
from pangu_convert.artifact import read_artifact, verify
from pangu_convert.code_text import (
    EVALUATION_MODULES,
    evaluation_pieces,
    evaluation_windows,
    library_files,
)
from pangu_convert.fidelity import Fidelity, FidelityError, FidelityMeter, first_difference
from pangu_convert.infilling import fim_tokens


def fidelity(source: list[list[float]], quantized: list[list[float]], ids: list[int]) -> Fidelity:
    """Of rows of probabilities; a last row that predicts nothing is added."""
    meter = FidelityMeter()
    width = max(len(source[0]), len(quantized[0]))
    tables = [torch.tensor([*rows, [1 / width] * len(rows[0])]).log() for rows in (source, quantized)]
    meter.add(ids, *tables)
    return meter.result()


def test_known_distributions_give_known_figures() -> None:
    found = fidelity([[0.5, 0.5], [0.75, 0.25]], [[0.25, 0.75], [0.75, 0.25]], [0, 0, 1])
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.positions == 2
    assert found.kl_mean == pytest.approx(kl / 2)
    assert found.kl_p99 == pytest.approx(kl)
    assert found.same_top1 == 0.5, "a tie of the source goes to its first token"
    assert found.source_perplexity == pytest.approx(1 / math.sqrt(0.5 * 0.25))
    assert found.perplexity == pytest.approx(1 / math.sqrt(0.25 * 0.25))
    assert found.perplexity_ratio == pytest.approx(math.sqrt(2))


def test_only_the_answer_counts() -> None:
    rows = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.5, 0.5]]).log()
    other = torch.tensor([[0.1, 0.9], [0.25, 0.75], [0.5, 0.5]]).log()
    meter = FidelityMeter()
    meter.add([0, 1, 1], rows, other, first=2)
    found = meter.result()
    assert found.positions == 1
    assert found.kl_mean == pytest.approx(0.75 * math.log(3) - 0.25 * math.log(3))
    assert found.source_perplexity == pytest.approx(4)


def test_a_model_is_no_distance_from_itself() -> None:
    rows = torch.randn(5, 7).log_softmax(-1)
    meter = FidelityMeter()
    meter.add([1, 2, 3, 4, 5], rows, rows.clone())
    found = meter.result()
    assert (found.kl_mean, found.kl_p99, found.same_top1, found.perplexity_ratio) == (0, 0, 1, 1)


@pytest.mark.parametrize("broken", ["source", "artifact"])
def test_what_is_no_number_is_no_distance(broken: str) -> None:
    rows = torch.randn(3, 7).log_softmax(-1)
    nans = torch.full_like(rows, math.nan)
    with pytest.raises(FidelityError, match=f"the {broken} puts out NaN"):
        FidelityMeter().add([1, 2, 3], *((nans, rows) if broken == "source" else (rows, nans)))


def test_impossible_tokens_and_a_padded_vocabulary_do_no_harm() -> None:
    found = fidelity([[1.0, 0.0]], [[0.5, 0.5, 0.0]], [0, 0])
    assert found.kl_mean == pytest.approx(math.log(2))


@given(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), max_size=5))
def test_first_difference_is_where_the_common_start_ends(one: list[int], other: list[int]) -> None:
    at = first_difference(one, other)
    if at is None:
        assert one == other
    else:
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]


def test_evaluation_text_is_fixed_and_calibration_never_sees_it(starcoder: Tokenizer) -> None:
    text = evaluation_windows(starcoder, num_windows=12, window_tokens=64)
    assert [len(window) for window in text.windows] == [64] * 12
    assert len(set(text.windows)) == 12
    assert text == evaluation_windows(starcoder, num_windows=12, window_tokens=64)
    names = {path.name for path in library_files() if path.parent.name.startswith("python")}
    assert names
    assert not names & set(EVALUATION_MODULES)


def test_the_answers_are_what_the_code_has_there(
    tiny_starcoder: Path, starcoder: Tokenizer, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_starcoder, tmp_path / "chatty")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}{{ eos_token }}"
    )
    forms = asked(folder, starcoder, num_windows=3, window_tokens=256)
    assert forms == asked(folder, starcoder, num_windows=3, window_tokens=256)
    assert [len(text.ids) for text in forms[CHATS]] == [256] * 3
    assert [len(text.ids) for text in forms[HOLES]] == [64] * 12
    pieces = evaluation_pieces(starcoder, num_pieces=12, piece_tokens=64)
    tokens = fim_tokens(starcoder)
    assert tokens is not None
    for (ids, first), piece in zip(forms[HOLES], pieces, strict=True):
        assert ids[0] == tokens.prefix
        assert ids[first - 1] == tokens.middle
        middle = ids.index(tokens.suffix)
        assert ids[1:middle] + ids[first:] + ids[middle + 1 : first - 1] == piece[:-3]
    for ids, first in forms[CHATS]:
        assert starcoder.decode(ids[:first], skip_special_tokens=False).endswith("<assistant>")
        assert starcoder.decode(ids[first:]).startswith("```python\n")


@pytest.fixture
def converted(artifacts: Artifacts, tmp_path: Path) -> Callable[[str], Path]:
    """An artifact of `tiny_starcoder` of one's own: what is found is written into it."""

    def copy(quantization: str) -> Path:
        made = artifacts("tiny_starcoder", "ctranslate2", "--quantization", quantization)
        return Path(shutil.copytree(made, tmp_path / quantization))

    return copy


def run_verify(artifact: Path, checkpoint: Path, *options: str) -> int:
    sizes = ["--windows", "3", "--window-tokens", "100", "--threads", "1"]
    return cli.main(["verify", str(artifact), "--against", str(checkpoint), *sizes, *options])


def test_a_float32_conversion_is_its_source(
    converted: Callable[[str], Path], tiny_starcoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = converted("float32")
    assert run_verify(artifact, tiny_starcoder) == 0
    shown = capsys.readouterr().out
    assert "greedy texts part at nowhere, nowhere" in shown
    assert shown.splitlines()[-1] == "within the bounds for 32 bits"
    record = read_artifact(artifact).manifest.scores["fidelity"]
    assert record["kl_mean"] < 1e-6
    assert record["same_top1"] == 1
    assert record["positions"] == 3 * 99
    assert record["answers"]["holes"]["kl_mean"] < 1e-6
    assert f"over {record['answers']['holes']['positions']} tokens of answers" in shown
    verify(read_artifact(artifact))


def test_int8_is_further_away_than_it_may_be_by_a_strict_bound(
    converted: Callable[[str], Path], tiny_starcoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = converted("int8")
    assert run_verify(artifact, tiny_starcoder, "--max-kl", "1e-6") == 1
    assert "OUTSIDE the bounds for 8 bits: mean KL" in capsys.readouterr().out
    assert read_artifact(artifact).manifest.scores["fidelity"]["kl_mean"] > 1e-6


def test_a_broken_artifact_is_flagged(
    tmp_path: Path, starcoder: Tokenizer, tiny_starcoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny(tmp_path / "other", starcoder, "gpt_bigcode", initializer_range=0.3)
    pangu_convert("ctranslate2", other, "--output", tmp_path / "broken", "--no-smooth")
    assert run_verify(tmp_path / "broken", tiny_starcoder) == 2
    assert "is not the checkpoint that" in capsys.readouterr().err
    # As if the conversion had gone wrong: another model's weights under this one's name.
    pangu_convert("ctranslate2", tiny_starcoder, "--output", tmp_path / "good", "--no-smooth")
    manifest = json.loads((tmp_path / "broken" / "manifest.json").read_text())
    manifest["source"] = json.loads((tmp_path / "good" / "manifest.json").read_text())["source"]
    (tmp_path / "broken" / "manifest.json").write_text(json.dumps(manifest))
    assert run_verify(tmp_path / "broken", tiny_starcoder) == 1
    assert "OUTSIDE the bounds" in capsys.readouterr().out


def test_hashes_are_checked_first(converted: Callable[[str], Path]) -> None:
    folder = converted("int8")
    assert cli.main(["verify", str(folder)]) == 0
    data = bytearray((folder / "model.bin").read_bytes())
    data[1000] ^= 1
    (folder / "model.bin").write_bytes(data)
    assert cli.main(["verify", str(folder)]) == 2
