"""Every architecture of the table, in each of its formats: converted, loaded and served, its greedy tokens are right.

Unquantized and int8 they are made as `pangu-serve FOLDER` makes them.

Right is what transformers computes in float32: from the checkpoint, or of a quantized artifact from the same numbers.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ctranslate2
import numpy as np
import pytest
import torch
from support.collector import Collector
from support.commands import SMALL, pangu_convert
from support.families import HEADS, MODELS, WINDOW, architecture_of, save_model
from support.models import Plain
from support.once import once
from support.reference import generated
from transformers import AutoConfig, AutoModelForCausalLM

from pangu_convert import cli
from pangu_convert.architectures import ARCHITECTURES
from pangu_convert.artifact import Artifact, ArtifactError, Format, read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import EngineChoice, LoadOptions, SamplingOptions
from pangu_server.backends.torch.runner import heads_of
from pangu_server.options import ServeOptions
from pangu_server.sources import artifact_folder

Families = Callable[[str], Path]
NEW_TOKENS = 24


def taken(format: Format) -> list[str]:
    """The kinds that the table has in this format."""
    return [kind for kind in MODELS if format in ARCHITECTURES[architecture_of(kind)]]


@pytest.fixture(scope="module")
def families(shared: Path) -> Families:
    """`families("qwen3")` -> its checkpoint, made once."""

    def make(kind: str) -> Path:
        folder = shared / "families" / kind
        return once(folder, lambda: save_model(kind, folder))

    return make


def converted(checkpoint: Path, folder: Path, *command: str) -> Artifact:
    verb, *options = command
    pangu_convert(verb, checkpoint, "--output", folder, *options)
    return read_artifact(folder)


def made_by_serve(checkpoint: Path, home: Path, format: Literal["auto", "transformers"]) -> Artifact:
    """What `pangu-serve CHECKPOINT` serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PANGU_HOME", str(home))
        return read_artifact(artifact_folder(ServeOptions(artifact=checkpoint, format=format, device="cpu")))


def prompts_for(artifact: Artifact) -> list[list[int]]:
    """A short one, one that is longer than a window, one that is longer than a page of the cache."""
    choice = random.Random(0)
    most = artifact.manifest.context_length - NEW_TOKENS
    return [[choice.randrange(1, 256) for _ in range(min(length, most))] for length in (5, 80, 200)]


def served(artifact: Artifact, engine: EngineChoice, prompts: list[list[int]]) -> list[list[int]]:
    """The greedy tokens of a batch of all `prompts`."""
    backend = load_backend(artifact, LoadOptions(device="cpu", threads=1, engine=engine))
    options = SamplingOptions(max_tokens=NEW_TOKENS, temperature=0)
    answers = [Collector() for _ in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        backend.submit(prompt, options, answer)
    for answer in answers:
        assert answer.ended.wait(120)
    backend.close()
    return [answer.tokens for answer in answers]


def transformers_tokens(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return [generated(model, prompt, NEW_TOKENS) for prompt in prompts]


def assert_served_as_stored(artifact: Artifact, plain: Plain) -> None:
    """The torch engine's greedy tokens are those of the artifact's own numbers."""
    prompts = prompts_for(artifact)
    answers = served(artifact, "torch", prompts)
    same = sum(plain.check(*pair, NEW_TOKENS) for pair in zip(prompts, answers, strict=True))
    assert same > 0.8 * NEW_TOKENS * len(prompts)


@pytest.mark.parametrize("kind", MODELS)
def test_unquantized(kind: str, families: Families, tmp_path: Path) -> None:
    checkpoint = families(kind)
    artifact = made_by_serve(checkpoint, tmp_path, "transformers")
    prompts = prompts_for(artifact)
    assert served(artifact, "torch", prompts) == transformers_tokens(checkpoint, prompts)


@pytest.mark.parametrize("kind", taken("ctranslate2"))
def test_ctranslate2_on_both_engines(kind: str, families: Families, tmp_path: Path) -> None:
    checkpoint = families(kind)
    exact = converted(checkpoint, tmp_path / "exact", "ctranslate2", "--quantization", "float32")
    prompts = prompts_for(exact)
    assert served(exact, "ctranslate2", prompts) == transformers_tokens(checkpoint, prompts)
    # int8, smoothed. The library rounds activations too, but not where it is asked to compute in float32.
    artifact = made_by_serve(checkpoint, tmp_path, "auto")
    assert artifact.manifest.quantization == "int8"
    plain = Plain(artifact, ends=False)
    library = ctranslate2.Generator(str(artifact.path), device="cpu", compute_type="float32", intra_threads=1)
    *_, prompt = prompts
    found = torch.from_numpy(np.array(library.forward_batch([prompt])))[0]
    with torch.inference_mode():
        assert torch.allclose(found, plain.model(torch.tensor([prompt])).logits[0], atol=1e-3)
    assert_served_as_stored(artifact, plain)


QUANTIZED = ("qwen3", "starcoder2")  # in each run; of the others each takes its half minute


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in QUANTIZED else pytest.mark.slow) for kind in taken("gptq")],
)
def test_gptq(kind: str, families: Families, tmp_path: Path) -> None:
    artifact = converted(families(kind), tmp_path / "artifact", "gptq", *SMALL)
    assert artifact.manifest.quantization == "gptq-int4-g64"
    assert_served_as_stored(artifact, Plain(artifact, ends=False))


def test_the_table_has_no_architecture_that_was_not_tried() -> None:
    assert {architecture_of(kind) for kind in MODELS} == set(ARCHITECTURES)


def test_a_format_that_cannot_hold_it_names_those_that_can(
    families: Families, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "artifact"
    assert cli.main(["ctranslate2", str(families("granite")), "--output", str(out)]) == 2
    expected = "is a GraniteForCausalLM, which can become transformers or gptq, not ctranslate2"
    assert expected in capsys.readouterr().err
    assert not out.exists()


SINKS = {**HEADS, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(("kind", "changes"), [("gpt_oss", SINKS), ("mpt", {})])
def test_attention_that_the_engine_does_not_know_is_refused(kind: str, changes: dict[str, Any]) -> None:
    """These would give wrong tokens without a word."""
    config = AutoConfig.for_model(kind, vocab_size=400, num_hidden_layers=2, hidden_size=64, **changes)
    with pytest.raises(ArtifactError, match="attention"):
        heads_of(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
