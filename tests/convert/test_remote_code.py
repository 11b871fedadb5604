"""No code of a checkpoint is run: every place that loads one by transformers says so, and never asks."""

import ast
from pathlib import Path

import pytest
from support import ROOT

from pangu_training.stage.vocabulary import require_usable

STAGES = ("training", "convert", "server", "bench", "docs/scripts")


def test_every_loader_of_transformers_is_told_not_to_run_code() -> None:
    found = 0
    for file in (file for stage in STAGES for file in (ROOT / stage).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                (".from_pretrained", "GPTQModel.load")
            ):
                told = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert told.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
                found += 1
    assert found > 5


def test_modules_in_the_current_folder_are_not_imported(
    tiny_bytes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is often converted from within its folder."""
    for name in ("json", "resource", "tokenizers", "pangu_training"):
        (tmp_path / f"{name}.py").write_text("open('was-run', 'w')")
    tokenizer = tiny_bytes / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_text(tokenizer.read_text() + "\n")  # not one that was tried already
    monkeypatch.chdir(tmp_path)
    require_usable(Path("tokenizer.json"))
    assert not (tmp_path / "was-run").exists()


def test_child_processes_look_for_modules_elsewhere_than_in_the_current_folder() -> None:
    found = 0
    for file in (file for stage in STAGES[:-1] for file in (ROOT / stage).rglob("*.py")):
        for line in file.read_text().splitlines():
            if 'sys.executable, "-' in line:
                assert any(f'sys.executable, "-{flag}"' in line for flag in "PI"), file
                found += 1
    assert found > 3
