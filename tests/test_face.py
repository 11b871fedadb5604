"""The stages from Python: what the verbs do, as functions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Artifacts
from support.problems import HUMAN_EVAL_ROW

from pangu_bench import compare
from pangu_bench.options import UsageError
from pangu_convert import convert
from pangu_convert.artifact import read_artifact
from pangu_training.stage.errors import CheckpointError, OptionError

LIBRARIES = ("torch", "transformers", "ctranslate2", "tokenizers", "pydantic", "httpx", "numpy")


@pytest.mark.parametrize("package", ["pangu_training", "pangu_convert", "pangu_server", "pangu_bench"])
def test_importing_a_package_loads_no_library(package: str) -> None:
    code = f"import {package}, sys; print(*sorted(set({LIBRARIES}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


def test_convert_makes_what_the_command_makes(
    artifacts: Artifacts, tiny_starcoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_command = read_artifact(artifacts("tiny_starcoder", "ctranslate2", "--quantization", "float32"))
    capsys.readouterr()
    made = convert(tiny_starcoder, tmp_path / "made", quantization="float32")
    assert made == read_artifact(tmp_path / "made")
    assert made.manifest.files == by_command.manifest.files
    assert made.manifest.name == by_command.manifest.name
    assert capsys.readouterr().out == "", "only the command prints"
    linked = convert(str(tiny_starcoder), str(tmp_path / "linked"), to="transformers", name="mine")
    assert (linked.manifest.format, linked.manifest.name) == ("transformers", "mine")


def test_convert_refuses_what_its_verb_does_not_have(tiny_starcoder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(TypeError, match="TransformersOptions has no option bits"):
        convert(tiny_starcoder, output, to="transformers", bits=4)
    with pytest.raises(OptionError, match="quantization: 'int3' is none of int8"):
        convert(tiny_starcoder, output, quantization="int3")
    with pytest.raises(ValueError, match="to='gguf' is none of"):
        convert(tiny_starcoder, output, to="gguf")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError):
        convert(tmp_path / "none", output)
    assert not output.exists()


def test_compare_returns_the_report_that_it_writes(
    artifacts: Artifacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        shutil.copytree(artifacts("tiny_starcoder", "ctranslate2", "--quantization", kind), tmp_path / kind)
        for kind in ("float32", "int8")
    ]
    suite = tmp_path / "own.jsonl"
    suite.write_text(json.dumps(HUMAN_EVAL_ROW) + "\n", encoding="utf-8")
    capsys.readouterr()
    few = {"prompt_tokens": [8], "new_tokens": 2, "context": 32, "warmup": 0, "repeats": 1}
    report = compare(paths, tmp_path / "out", suite=f"humaneval:{suite}", limit=1, max_tokens=4, **few)
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == json.loads(json.dumps(report))
    assert [one["name"] for one in report["artifacts"]] == [read_artifact(p).manifest.name for p in paths]
    assert len(report["pairs"]) == 1
    assert capsys.readouterr().out == "", "only the command prints"


def test_compare_refuses_what_its_verb_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="CompareOptions has no option lmit"):
        compare([], tmp_path, lmit=1)
    with pytest.raises(UsageError, match="give an artifact"):
        compare([], tmp_path)
