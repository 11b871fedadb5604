"""A model card says what is known, what was measured, and plainly what is not known; nobody's words are lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from support.adapters import save_adapter
from support.commands import pangu_convert
from support.gguf_files import gguf_content
from support.models import save_model

from pangu_convert import cli
from pangu_convert.artifact import read_artifact, verify, write_scores
from pangu_convert.catalogue import MODELS, HubFile
from pangu_convert.origin import origin_of

SCORE: dict[str, Any] = {
    "suite": "humaneval",
    "style": "chat",
    "samples": "164x1",
    "measured_at": "2026-11-23T18:32:49.697+00:00",
    "pass_at_k": {"1": 0.5548780487804879},
    "intervals": {"1": [0.47842558160413745, 0.6288184814925109]},
    "warnings": ["all 164 answers are the same text: the model is broken"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint made of a GGUF file of random weights, and its artifact."""
    folder = tmp_path_factory.mktemp("made")
    gguf = gguf_content(save_model(folder / "model", "qwen2"), "qwen2").write(folder / "tiny.gguf")
    pangu_convert("import", gguf, "--output", folder / "checkpoint")
    pangu_convert("ctranslate2", folder / "checkpoint", "--output", folder / "artifact", "--no-smooth")
    return folder


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "artifact", tmp_path / "artifact"))


def card_of(artifact: Path, *arguments: object) -> str:
    pangu_convert("card", artifact, *arguments)
    return (artifact / "README.md").read_text()


def metadata_of(text: str) -> Any:
    """What the hub reads of a card."""
    return ModelCard(text).data


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main(["card", *map(str, arguments)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def write_run(folder: Path, artifact: Path, **changes: object) -> Path:
    """What `pangu-bench compare` leaves of the artifact and its baseline."""
    own = {"name": "mine", "sha256": read_artifact(artifact).manifest.sha256, "score": SCORE, **changes}
    other = {"name": "base", "sha256": "0" * 64, "score": SCORE}
    pair = {
        "baseline": "base",
        "name": "mine",
        "verdict": "inside noise: +0.0 points (6 gained, 6 lost, p = 1)",
    }
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps({"artifacts": [other, own], "pairs": [pair]}))
    return folder


def test_a_card_says_what_is_known_and_what_is_not(artifact: Path) -> None:
    before = read_artifact(artifact).manifest
    text = card_of(artifact)
    metadata = metadata_of(text)
    assert metadata.license == "unknown"
    assert metadata.library_name == "ctranslate2"
    assert metadata.to_dict()["quantization"] == "int8"
    assert metadata.base_model is None
    assert set(metadata.tags or ()) == {"code", "pangu-coder2", "ctranslate2", "8-bit"}
    assert "Its licence is unknown: ask" in text
    assert "quantized already (GGUF F32): the weights were quantized a second time" in text
    assert "What it solves is unknown: no benchmark score is recorded." in text
    assert "distance from the checkpoint that it was made of was not measured" in text
    assert f"sha256 `{before.source.sha256}`" in text
    assert "It has a chat template" in text
    verify(read_artifact(artifact))
    assert read_artifact(artifact).manifest.sha256 == before.sha256


def test_random_weights_are_called_that(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "checkpoint", "llama")
    note = {"source": "shape", "note": "random weights: shape only"}
    (checkpoint / "import.json").write_text(json.dumps(note))
    pangu_convert("transformers", checkpoint, "--output", tmp_path / "artifact")
    assert "- Random weights: shape only.\n" in (text := card_of(tmp_path / "artifact"))
    assert "It has no chat template" in text


def test_a_licence_is_the_sources_or_what_the_user_says(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "checkpoint", "llama")
    origin = {
        "source": "Owner/Name",
        "commit": "c" * 40,
        "revision": "main",
        "licence": "Apache-2.0",
        "cite": "Us",
    }
    (checkpoint / "import.json").write_text(json.dumps(origin))
    pangu_convert("transformers", checkpoint, "--output", tmp_path / "artifact")
    metadata = metadata_of(text := card_of(tmp_path / "artifact"))
    assert (metadata.license, metadata.base_model) == ("apache-2.0", "Owner/Name")
    assert f"Imported from `Owner/Name` at commit `{'c' * 40}`" in text
    assert "licence is unknown" not in text
    metadata = metadata_of(text := card_of(tmp_path / "artifact", "--licence", "My own: no <b>bold</b>"))
    assert (metadata.license, metadata.license_name) == ("other", "My own: no <b>bold</b>")
    assert "- Licence: My own: no &lt;b>bold" in text


def test_a_merged_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama")
    (base / "import.json").write_text(
        json.dumps({"source": "Owner/Base", "commit": "c" * 40, "licence": "MIT"})
    )
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    pangu_convert("import", adapter, "--output", tmp_path / "merged")
    pangu_convert("transformers", tmp_path / "merged", "--output", tmp_path / "artifact")
    metadata = metadata_of(text := card_of(tmp_path / "artifact"))
    assert (metadata.license, metadata.base_model) == ("unknown", "Owner/Base"), (
        "the base's licence is not its own"
    )
    assert "A LoRA adapter, `adapter`, merged into `Owner/Base`" in text
    assert "nobody could check" in text
    assert "Of its base: MIT." in text


def test_a_floating_type_is_no_quantization(made: Path, tmp_path: Path) -> None:
    options = ("--quantization", "float16", "--output", tmp_path / "artifact")
    pangu_convert("ctranslate2", made / "checkpoint", *options)
    metadata = metadata_of(text := card_of(tmp_path / "artifact"))
    assert "its weights in float16, not quantized" in text
    assert "quantized to 16 bits" not in text
    assert "| quantization | none, float16 |" in text
    assert "what that lost is still lost" in text
    assert metadata.to_dict()["quantization"] == "none"
    assert set(metadata.tags or ()) == {"code", "pangu-coder2", "ctranslate2"}


def test_what_others_quantized_cannot_be_measured(made: Path, tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    stock.mkdir()
    for file in (made / "artifact").iterdir():
        if file.name not in ("manifest.json", "checkpoint_config.json"):
            shutil.copyfile(file, stock / file.name)
    checkpoint = ("--tokenizer", made / "checkpoint")
    pangu_convert("adopt", stock, *checkpoint, "--output", tmp_path / "artifact")
    text = card_of(tmp_path / "artifact")
    assert "pangu-convert verify" not in text
    assert "before it was quantized is unknown: others did that" in text


def test_the_distances_are_told_of_code_and_of_answers(tiny_starcoder: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    pangu_convert("ctranslate2", tiny_starcoder, "--quantization", "float32", "--output", artifact)
    sizes = ("--windows", "2", "--window-tokens", "100", "--threads", "1")
    pangu_convert("verify", artifact, "--against", tiny_starcoder, *sizes)
    text = card_of(artifact)
    assert "- Distance from its checkpoint on code: mean KL 0.0" in text
    assert "within the bounds for 32 bits.\n- The same of holes: mean KL 0.0" in text
    # As it was recorded before answers were measured.
    scores: dict[str, Any] = read_artifact(artifact).manifest.scores["fidelity"]
    del scores["answers"]
    write_scores(read_artifact(artifact), {"fidelity": scores})
    assert "The same of" not in (text := card_of(artifact))
    assert "within the bounds for 32 bits." in text


def test_a_model_of_the_catalogue_is_known_by_its_hash() -> None:
    name, file = next(iter(MODELS.items()))
    found = origin_of({"source": name, "sha256": file.sha256})
    assert found.hub_id in {mirror.repository for mirror in file.mirrors if isinstance(mirror, HubFile)}
    for record in ({"source": name}, {"source": name, "sha256": "0" * 64}):
        assert origin_of(record).hub_id is None
        assert "of the catalogue" not in origin_of(record).steps[0]


def test_scores_come_with_their_intervals_and_verdicts(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", artifact)
    text = card_of(artifact, "--scores", run)
    assert "| humaneval | chat | 164x1 | pass@1 55.5% | 47.8% to 62.9% | 2026-11-23 |" in text
    assert "- Against base (humaneval, chat): Inside noise: +0.0 points (6 gained, 6 lost, p = 1)." in text
    assert "- Of a score: All 164 answers are the same text: the model is broken." in text
    assert "no benchmark score" not in text
    # What the manifest knows is there without a run, and once.
    write_scores(read_artifact(artifact), {"humaneval": SCORE, "costs": {"x": 1}})
    assert card_of(artifact, "--scores", run / "compare.json").count("| humaneval |") == 1
    assert "pass@1 55.5%" in card_of(artifact)


def test_scores_of_another_artifact_are_refused(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "other", artifact, sha256="1" * 64)
    error = refused(capsys, artifact, "--scores", other)
    assert "has figures of base, mine, and none of" in error
    assert "is not there: --scores takes" in refused(capsys, artifact, "--scores", tmp_path / "gone")
    (tmp_path / "text").write_text("hello")
    assert "compare writes (Expecting value" in refused(capsys, artifact, "--scores", tmp_path / "text")
    (tmp_path / "nan").write_text('{"artifacts": NaN}')
    assert "NaN is not JSON" in refused(capsys, artifact, "--scores", tmp_path / "nan")
    broken = write_run(tmp_path / "broken", artifact, score={**SCORE, "intervals": {}})
    assert "cannot be read" in refused(capsys, artifact, "--scores", broken)
    (tmp_path / "empty.json").write_text("{}")
    assert "is not what pangu-bench compare writes" in refused(
        capsys, artifact, "--scores", tmp_path / "empty.json"
    )
    assert not (artifact / "README.md").exists()


def test_words_of_a_person_are_never_lost(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = artifact / "README.md"
    text = card_of(artifact)
    assert card_of(artifact) == text, "what nobody touched is written anew"
    for edited in (
        "# Mine\n",
        text.replace("8 bits", "eight bits"),
        text + "More.\n",
        text.replace("--\n", "-- \n"),
    ):
        file.write_text(edited)
        assert "was written or edited by hand and is kept" in refused(capsys, artifact)
        assert file.read_text() == edited
    pangu_convert("card", artifact, "--force")
    assert file.read_text() == text


def test_an_artifact_with_its_card_can_be_replaced_and_one_with_a_persons_cannot(
    artifact: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ("transformers", made / "checkpoint", "--output", artifact, "--force")
    (artifact / "README.md").write_text("# Mine\n")
    assert cli.main([*map(str, again)]) == 2
    assert "holds README.md, which no pangu command wrote" in capsys.readouterr().err
    pangu_convert("card", artifact, "--force")
    pangu_convert(*again)
    assert not (artifact / "README.md").exists()
