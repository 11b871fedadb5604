"""No code of a checkpoint is run: every place that loads one by transformers says so, and never asks."""

import ast

from support import ROOT

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
