"""An output folder is absent or whole, whatever ends its writer."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_training.stage.errors import OutputError
from pangu_training.stage.output import link_or_copy, new_directory, write_file

WRITER = """
import os, signal, sys
from pathlib import Path
from pangu_training.stage.output import new_directory
with new_directory(Path(sys.argv[1]), force="--force" in sys.argv) as folder:
    (folder / "half").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def old_output(folder: Path) -> Path:
    """A folder that we wrote, by its record."""
    folder.mkdir()
    (folder / "old").touch()
    (folder / "import.json").write_text('{"source": "x", "files": {"old": "0"}}')
    return folder


def test_a_finished_block_becomes_the_folder(tmp_path: Path) -> None:
    with new_directory(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "content"
    assert names(tmp_path / "deep") == {"out"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_directory(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        raise error
    assert names(tmp_path) == set()


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="--force"), new_directory(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == {"out"}


def test_force_replaces_only_when_the_new_folder_is_whole(tmp_path: Path) -> None:
    out = old_output(tmp_path / "out")
    with pytest.raises(ValueError, match="broken"), new_directory(out, force=True):
        raise ValueError("broken")
    assert names(out) == {"import.json", "old"}
    with new_directory(out, force=True) as folder:
        (folder / "new").touch()
    assert names(out) == {"new"}
    assert names(tmp_path) == {"out"}


def test_a_killed_writer_leaves_no_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", WRITER, tmp_path / "out"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with new_directory(tmp_path / "out") as folder:
        assert names(folder) == set()
    assert names(tmp_path) == {"out"}


def test_a_killed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    old_output(tmp_path / "out")
    subprocess.run([sys.executable, "-c", WRITER, tmp_path / "out", "--force"], check=False)
    assert names(tmp_path / "out") == {"import.json", "old"}


def test_a_writer_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "old").touch()
    with pytest.raises(OutputError, match="exists already"), new_directory(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert names(tmp_path / "out") == {"old"}


def test_two_writers_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    with (
        new_directory(tmp_path / "out") as folder,
        pytest.raises(OutputError, match="another process"),
        new_directory(tmp_path / "out"),
    ):
        pytest.fail("the block must not run")
    assert not folder.exists()
    assert names(tmp_path) == {"out"}


def test_too_little_free_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="MB free"), new_directory(tmp_path / "out", needed_bytes=1 << 60):
        pytest.fail("the block must not run")
    assert names(tmp_path) == set()


def test_a_disk_that_fills_up_is_one_clear_error(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    code = WRITER.replace('write_text("new")', "write_bytes(bytes(2 << 20))")
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OutputError: no space left" in ended.stderr
    assert names(tmp_path) == set()


def test_a_written_file_is_replaced_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"one")
    write_file(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert names(tmp_path) == {"file"}


def test_weights_are_linked_through_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("blob")
    link_or_copy(tmp_path / "link", tmp_path / "linked")
    assert not (tmp_path / "linked").is_symlink()
    assert os.stat(tmp_path / "linked").st_ino == os.stat(tmp_path / "blob").st_ino


def test_a_link_stays_and_where_it_leads_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    for force in (False, True):
        with new_directory(tmp_path / "out", force=force) as folder:
            (folder / "import.json").write_text('{"source": "x", "files": {}}')
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk") == {"out"}
    assert names(tmp_path) == {"disk", "out"}


def test_the_root_is_refused() -> None:
    with (
        pytest.raises(OutputError, match="name a folder"),
        new_directory(Path("/"), force=True),
    ):
        pytest.fail("the block must not run")
