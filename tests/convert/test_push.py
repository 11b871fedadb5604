"""An artifact is pushed whole, in one commit, by the hub's real client, or not at all and with one line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import Artifacts
from support.hub import files_of
from support.hub_uploads import TOKEN, Hub, serve_uploads

from pangu_convert import cli

REPOSITORY = "owner/tiny"
# The client sends a file in a way that its own library calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def artifact(artifacts: Artifacts, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifacts("tiny_bytes", "transformers"), tmp_path / "artifact"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    # A server that is out of order is asked again, for a while.
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serve_uploads(monkeypatch) as hub:
        yield hub


def pushed(artifact: Path, *arguments: str) -> int:
    return cli.main(["push", str(artifact), REPOSITORY, *arguments])


def refused(capsys: pytest.CaptureFixture[str], artifact: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert pushed(artifact, *arguments) == 2
    captured = capsys.readouterr()
    assert TOKEN not in captured.err + captured.out
    line = captured.err.splitlines()[-1]
    assert line.startswith("pangu-convert: error: ")
    return line


def test_an_artifact_goes_up_in_one_commit(
    artifact: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    (artifact / "notes.txt").write_text("not of the artifact")
    assert pushed(artifact, "--private") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{hub.address}/{REPOSITORY}/commit/1\n"
    assert TOKEN not in captured.err
    [(name, branch, message)] = hub.commits
    assert (name, branch, hub.private) == (REPOSITORY, "main", {REPOSITORY})
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["name"] in message
    there = {
        name: data for name, data in hub.repositories[REPOSITORY]["main"].items() if name != ".gitattributes"
    }
    assert there == {name: data for name, data in files_of(artifact).items() if name != "notes.txt"}
    assert set(there) == {*manifest["files"], "manifest.json", "README.md"}
    card = there["README.md"].decode()
    assert f"hf download {REPOSITORY} --local-dir tiny\npangu-serve tiny\n" in card


def test_what_is_there_is_not_sent_again(artifact: Path, hub: Hub) -> None:
    hub.refusals["/commit/"] = 500
    assert pushed(artifact) == 2
    sent = [one for one in hub.requests if one.startswith("PUT")]
    assert sent
    assert hub.repositories[REPOSITORY]["main"].keys() == {".gitattributes"}, "nothing is half there"
    hub.refusals.clear()
    assert pushed(artifact) == 0
    assert [one for one in hub.requests if one.startswith("PUT")] == sent
    assert len(hub.commits) == 1


def test_a_branch_is_made(artifact: Path, hub: Hub) -> None:
    assert pushed(artifact, "--revision", "int8/v1") == 0
    assert "manifest.json" in hub.repositories[REPOSITORY]["int8/v1"]
    assert "manifest.json" not in hub.repositories[REPOSITORY]["main"]
    assert pushed(artifact, "--revision", "int8/v1") == 0


def test_what_does_not_verify_is_not_pushed(
    artifact: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = bytearray((artifact / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (artifact / "model.safetensors").unlink()
    (artifact / "model.safetensors").write_bytes(weights)
    assert "model.safetensors in" in refused(capsys, artifact)
    assert not hub.requests
    assert "does not name a repository: give OWNER/NAME" in refused_name(capsys, artifact, "tiny")


def refused_name(capsys: pytest.CaptureFixture[str], artifact: Path, name: str) -> str:
    assert cli.main(["push", str(artifact), name]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "status", "advice"),
    [
        ("/api/repos/create", 401, "the hub does not know the token"),
        ("/api/repos/create", 403, "the token may not write there"),
        ("/api/repos/create", 500, "run the same command again"),
        ("/revision/main", 404, "there is no such repository, branch or owner"),
        ("/preupload/", 403, "the token may not write there"),
        ("/objects/batch", 403, "the token may not write there"),
        ("PUT /objects/", 400, "run the same command again"),
        ("PUT /objects/", 503, "run the same command again"),
        ("/commit/", 403, "the token may not write there"),
        ("/commit/", 409, "run the same command again"),
        ("/commit/", 412, "the repository changed meanwhile"),
        ("/commit/", 500, "run the same command again"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    step: str, status: int, advice: str, artifact: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refusals[step] = status
    line = refused(capsys, artifact)
    assert f"{REPOSITORY} was not pushed (HTTP {status}): " in line
    assert advice in line
    assert not hub.commits
    assert all(files.keys() == {".gitattributes"} for files in hub.repositories.get(REPOSITORY, {}).values())


def test_no_hub_and_no_token_are_one_line(
    artifact: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "Connection refused" in refused(capsys, artifact)
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token for the hub" in refused(capsys, artifact)


def test_nothing_of_others_is_mixed_in_or_overwritten(
    artifact: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[REPOSITORY] = {"main": {"model.bin": b"another model"}}
    assert "holds model.bin, which is not of this artifact" in refused(capsys, artifact)
    hub.repositories[REPOSITORY] = {"main": {"README.md": b"# Theirs"}}
    assert "README.md of owner/tiny was edited there" in refused(capsys, artifact)
    assert not hub.commits
    (artifact / "README.md").write_text("# Mine")
    assert "leave the card's options out" in refused(capsys, artifact, "--licence", "mit")
    hub.repositories[REPOSITORY] = {"main": {}}
    assert pushed(artifact) == 0
    assert hub.repositories[REPOSITORY]["main"]["README.md"] == b"# Mine"


def test_force_is_of_the_hubs_card_only(artifact: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    own = artifact / "README.md"
    own.write_text("# Mine")
    hub.repositories[REPOSITORY] = {"main": {"README.md": b"# Theirs"}}
    assert "or replace it with --force" in refused(capsys, artifact)
    assert "pangu-convert card --force" in refused(capsys, artifact, "--force", "--licence", "mit")
    assert pushed(artifact, "--force") == 0
    assert own.read_text() == "# Mine"
    assert hub.repositories[REPOSITORY]["main"]["README.md"] == b"# Mine"
    own.unlink()
    assert pushed(artifact, "--licence", "mit", "--force") == 0
    assert b"pangu-serve tiny" in hub.repositories[REPOSITORY]["main"]["README.md"]


def test_who_was_faster_is_not_overwritten(
    artifact: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    action = hub._action

    def meanwhile(large: dict[str, Any]) -> dict[str, Any]:
        hub.repositories[REPOSITORY]["main"]["README.md"] = b"# Theirs"
        return action(large)

    monkeypatch.setattr(hub, "_action", meanwhile)
    assert "the repository changed meanwhile" in refused(capsys, artifact)
    assert hub.repositories[REPOSITORY]["main"]["README.md"] == b"# Theirs"
    assert not hub.commits


def test_a_card_that_leads_elsewhere_is_not_uploaded(
    artifact: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, secret = artifact / "README.md", tmp_path / "secret"
    card.symlink_to(secret)
    assert "outside its folder" in refused(capsys, artifact)
    secret.write_text("a secret")
    assert "outside its folder" in refused(capsys, artifact, "--force")
    card.unlink()
    card.mkdir()
    assert "it is not a file" in refused(capsys, artifact)
    assert not hub.requests
    assert secret.read_text() == "a secret"
