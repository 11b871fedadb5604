"""Which engine runs what, as a table."""

import dataclasses
import importlib.util
import subprocess
import sys

import pytest
from support.commands import Artifacts

from pangu_convert.artifact import Artifact, ArtifactError, read_artifact
from pangu_server.backends import choice, load_backend
from pangu_server.backends.choice import Facts, choose, choose_engine
from pangu_server.backends.seam import EngineChoice, EngineName, LoadOptions
from pangu_training.stage.errors import MissingExtra


def facts(
    format: str = "ctranslate2",
    quantization: str = "int8",
    *,
    torch: bool = True,
    packs: bool = False,
    gpu: bool = False,
    kernel: bool = True,
    torch_gpu: bool = False,
) -> Facts:
    return Facts(
        name="artifact",
        format=format,
        quantization=quantization,
        torch=torch,
        packs=packs,
        gpu=gpu,
        kernel=kernel,
        torch_gpu=torch_gpu,
    )


@pytest.mark.parametrize(
    ("given", "asked", "engine", "why"),
    [
        (facts("transformers", "none"), "auto", "torch", "transformers format"),
        (facts("transformers", "none", torch=False), "auto", "torch", "transformers format"),
        (facts("gptq", "int4"), "torch", "torch", "gptq format"),
        (facts(), "auto", "torch", "again at each step"),
        (facts(quantization="int8_bfloat16"), "auto", "torch", "again at each step"),
        (facts(packs=True), "auto", "ctranslate2", "packs int8 matrices once"),
        (facts(torch=False), "auto", "ctranslate2", "torch is not installed"),
        (facts(kernel=False), "auto", "ctranslate2", "no int8 kernel"),
        (facts(packs=True, gpu=True, torch_gpu=True), "auto", "torch", "on a GPU"),
        (facts(gpu=True), "auto", "ctranslate2", "without CUDA"),
        (facts(packs=True), "torch", "torch", "asked for"),
        (facts(), "ctranslate2", "ctranslate2", "asked for"),
        *[
            (facts(quantization=quantization, gpu=True, torch_gpu=True), "auto", "ctranslate2", quantization)
            for quantization in ("float32", "float16", "bfloat16", "int16")
        ],
        (facts(quantization="float16"), "ctranslate2", "ctranslate2", "asked for"),
    ],
)
def test_the_engine_and_why(given: Facts, asked: EngineChoice, engine: EngineName, why: str) -> None:
    chosen, reason = choose(given, asked)
    assert chosen == engine
    assert why in reason


@pytest.mark.parametrize(
    ("given", "asked", "error", "said"),
    [
        (facts("transformers", "none"), "ctranslate2", ArtifactError, "pangu-convert ctranslate2"),
        (facts("gptq", "int4"), "ctranslate2", ArtifactError, "leave --engine out"),
        (facts(quantization="float16"), "torch", ArtifactError, "pangu-convert transformers"),
        (facts(torch=False), "torch", MissingExtra, "serve-torch"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    given: Facts, asked: EngineChoice, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        choose(given, asked)


@pytest.fixture(scope="module")
def artifact(artifacts: Artifacts) -> Artifact:
    return read_artifact(artifacts("tiny_starcoder", "ctranslate2", "--quantization", "int8", "--no-smooth"))


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_the_facts_are_this_machines(
    artifact: Artifact, packs: bool, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(choice, "packs_int8", lambda: packs)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if installed else None)
    engine, why = choose_engine(artifact, LoadOptions(device="cpu"))
    assert engine == ("torch" if installed and not packs else "ctranslate2")
    assert ("not installed" in why) == (not installed)


@pytest.mark.parametrize("torch_gpu", [True, False])
def test_a_gpu_is_asked_for_unless_the_cpu_is_wanted(
    artifact: Artifact, torch_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "packs_int8", lambda: True)
    monkeypatch.setattr(choice, "find_gpu", lambda: (True, torch_gpu))
    assert choose_engine(artifact, LoadOptions())[0] == ("torch" if torch_gpu else "ctranslate2")
    assert choose_engine(artifact, LoadOptions(device="cuda"))[0] == ("torch" if torch_gpu else "ctranslate2")
    assert choose_engine(artifact, LoadOptions(device="cpu"))[0] == "ctranslate2"


def test_a_loaded_backend_says_why(artifact: Artifact) -> None:
    backend = load_backend(artifact, LoadOptions(device="cpu", engine="ctranslate2"))
    assert (backend.info.engine, backend.info.why) == ("ctranslate2", "it was asked for")
    backend.close()
    other = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, format="gptq"))
    with pytest.raises(ArtifactError, match="leave --engine out"):
        load_backend(other, LoadOptions(device="cpu", engine="ctranslate2"))


def test_the_library_is_chosen_without_torch(artifact: Artifact) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pangu_convert.artifact import read_artifact\n"
        "from pangu_server.backends.choice import choose_engine\n"
        "from pangu_server.backends.seam import LoadOptions\n"
        "choose_engine(read_artifact(Path(sys.argv[1])), LoadOptions(engine=sys.argv[2], device=sys.argv[3]))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    for engine, device in (("ctranslate2", "auto"), ("auto", "cpu")):
        subprocess.run([sys.executable, "-c", program, artifact.path, engine, device], check=True)
