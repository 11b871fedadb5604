"""Imports from the hub, with its real client: the commit that is asked for, recorded as far as the server, and no
byte that is not the hub's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hub import commit_of, serve_hub, use_hub

from pangu_convert import cli
from pangu_convert.artifact import read_artifact
from pangu_training.stage.checkpoint import read_checkpoint

WEIGHTS = "model.safetensors"


@pytest.fixture
def repository(tmp_path: Path, tiny_bytes: Path) -> Path:
    """What the hub has."""
    return Path(shutil.copytree(tiny_bytes, tmp_path / "repository"))


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the client ask the hub at an address; downloads are kept in `tmp_path / "home"`."""
    return lambda address: use_hub(monkeypatch, address, tmp_path / "home")


def imported(output: Path, *arguments: str) -> dict[str, Any]:
    """Import `owner/repo`; what the checkpoint says of itself."""
    assert cli.main(["import", "owner/repo", *arguments, "--output", str(output)]) == 0
    provenance = read_checkpoint(output).provenance
    assert provenance is not None
    return dict(provenance)


def refused(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["import", *arguments, "--output", str(output)]) == 2
    assert not output.exists()
    return capsys.readouterr().err.splitlines()[-1]


def upload(repository: Path, change: float) -> str:
    """Other weights under the same name; the new commit."""
    weights = load_file(repository / WEIGHTS)
    save_file({name: tensor + change for name, tensor in weights.items()}, repository / WEIGHTS)
    return commit_of(repository)


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_repository_that_changed_gives_the_new_model(
    tmp_path: Path, repository: Path, use: Callable[[str], None]
) -> None:
    (repository / "pytorch_model.bin").write_bytes(b"a pickle that nobody asked for")
    (repository / "onnx").mkdir()
    (repository / "onnx" / WEIGHTS).write_bytes(b"another form of the model")
    first = commit_of(repository)
    with serve_hub(repository) as address:
        use(address)
        before = imported(tmp_path / "before")
        second = upload(repository, 1.0)
        after = imported(tmp_path / "after")
        assert same_weights(tmp_path / "after", repository)
        assert not same_weights(tmp_path / "before", repository)
    assert (before["source"], before["revision"], before["commit"]) == ("owner/repo", "main", first)
    assert (after["revision"], after["commit"]) == ("main", second)
    folders = {entry.name for entry in (tmp_path / "home" / "hub" / "owner--repo").iterdir()}
    assert folders == {first, second}
    assert not list((tmp_path / "home").rglob("*.bin"))
    assert not list((tmp_path / "home").rglob("onnx"))


def test_a_branch_a_tag_and_a_commit_are_revisions(
    tmp_path: Path, repository: Path, use: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    old = Path(shutil.copytree(repository, tmp_path / "old"))
    new = upload(repository, 1.0)
    with serve_hub(repository, {"v1.0": old, "refs/pr/1": old}) as address:
        use(address)
        for number, revision in enumerate(("v1.0", "refs/pr/1", commit_of(old))):
            origin = imported(tmp_path / f"out-{number}", "--revision", revision)
            assert (origin["revision"], origin["commit"]) == (revision, commit_of(old))
            assert same_weights(tmp_path / f"out-{number}", old)
        assert imported(tmp_path / "main")["commit"] == new
        assert "owner/repo at v2 could not be fetched" in refused(
            capsys, tmp_path / "none", "owner/repo", "--revision", "v2"
        )


def test_a_commit_that_is_there_needs_no_hub(
    tmp_path: Path, repository: Path, use: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_hub(repository) as address:
        use(address)
        commit = imported(tmp_path / "out")["commit"]
    assert imported(tmp_path / "again", "--revision", commit)["commit"] == commit
    error = refused(capsys, tmp_path / "none", "owner/repo")
    assert f"--revision {commit}, which the cache has" in error, "main may be another commit by now"


def test_what_changed_in_the_cache_is_fetched_again(
    tmp_path: Path, repository: Path, use: Callable[[str], None]
) -> None:
    """The cache's files are linked into checkpoints, where programs write into them."""
    with serve_hub(repository) as address:
        use(address)
        imported(tmp_path / "out")
        weights = tmp_path / "out" / WEIGHTS
        with weights.open("r+b") as file:
            file.seek(-8, 2)
            file.write(b"\1" * 8)
        imported(tmp_path / "again")
        assert same_weights(tmp_path / "again", repository)
        assert not same_weights(tmp_path / "out", repository)


def test_other_bytes_than_the_hub_says_are_refused(
    tmp_path: Path, repository: Path, use: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_hub(repository, damaged=WEIGHTS) as address:
        use(address)
        assert f"{WEIGHTS} did not come as" in refused(capsys, tmp_path / "out", "owner/repo")
    with serve_hub(repository) as address:
        use(address)
        imported(tmp_path / "out")


def test_what_the_hub_does_not_have_is_named(
    tmp_path: Path, repository: Path, use: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with serve_hub(repository) as address:
        use(address)
        assert "owner/nothing could not be fetched" in refused(capsys, out, "owner/nothing")
        assert "has no m.gguf: it has no GGUF file" in refused(capsys, out, "owner/repo/m.gguf")
        (repository / "config.json").unlink()
        (repository / "q8.gguf").write_bytes(b"GGUF")
        assert "import one of them, owner/repo/q8.gguf" in refused(capsys, out, "owner/repo")
        assert "has no q4.gguf: it has q8.gguf" in refused(capsys, out, "owner/repo/q4.gguf")


def test_a_revision_is_of_a_hub_id(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in ("smollm2-135m", str(repository)):
        error = refused(capsys, tmp_path / "out", source, "--revision", "main")
        assert "--revision is of a hub id" in error


def test_the_commit_is_in_the_manifest_and_the_server_says_it(
    tmp_path: Path, repository: Path, use: Callable[[str], None]
) -> None:
    from pangu_server.encoding import read_tokenizer
    from pangu_server.engine import Engine
    from pangu_server.metrics import Metrics
    from pangu_server.protocol.service import ModelCard

    with serve_hub(repository) as address:
        use(address)
        commit = imported(tmp_path / "checkpoint")["commit"]
    # Once more, from the folder: it is the same model.
    arguments = ["import", str(tmp_path / "checkpoint"), "--output", str(tmp_path / "copy")]
    assert cli.main(arguments) == 0
    assert cli.main(["transformers", str(tmp_path / "copy"), "--output", str(tmp_path / "artifact")]) == 0
    artifact = read_artifact(tmp_path / "artifact")
    provenance = artifact.manifest.source.provenance
    assert provenance is not None
    assert (provenance["source"], provenance["commit"]) == ("owner/repo", commit)
    engine = Engine(artifact, read_tokenizer(artifact), Metrics("repo"))
    card = json.loads(ModelCard.of(engine, "repo").model_dump_json())
    assert (card["source"], card["source_commit"]) == ("repo", commit)
