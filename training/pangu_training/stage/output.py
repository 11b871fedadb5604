"""Writing an output folder so that it is either absent or whole, whatever kills the writer.

Everything is written to a hidden sibling, synced, and renamed. The sibling carries a lock for as long as
its writer lives; what a killed writer left is removed by the next one.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pangu_training.stage.errors import OutputError
from pangu_training.stage.paths import require_free


@contextlib.contextmanager
def new_directory(path: Path, *, force: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an exception.

    `force` replaces a folder that a pangu command wrote; `needed_bytes` is checked against the free space before the
    block runs. A block that fails, Ctrl-C included, leaves nothing behind. A symbolic link stays: where it leads is
    written.

    Raises:
        OutputError: see `require_free`; another process is writing it, or the disk has less than `needed_bytes`
            free, before or while writing.
    """
    path = path.resolve()
    if not path.name:
        raise OutputError(f"{path} cannot be written: name a folder in it")
    partial, replaced, gone = (
        path.with_name(f".{path.name}.{what}") for what in ("partial", "replaced", "gone")
    )
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial):
        try:
            if replaced.exists() and not path.exists():
                replaced.rename(
                    path
                )  # a writer was killed between its two renames: what it replaced is still good
            require_free(path, "folder", force=force)
            _empty(partial)
            require_free_space(partial, needed_bytes)
            yield partial
            _sync(partial)
            _remove(replaced, gone)
            if path.exists():
                path.rename(replaced)
            partial.rename(path)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if replaced.exists() and not path.exists():
                with contextlib.suppress(OSError):  # else the next writer does it
                    replaced.rename(path)
            if is_disk_full(error):
                raise OutputError(
                    f"no space left on the disk of {path.parent}: free some and run the same command again"
                ) from error
            raise
        _sync_entry(path.parent)
        _remove(replaced, gone)


def require_new(*paths: Path, force: bool) -> None:
    """Make the folders of files that are to be written.

    Raises:
        OutputError: a file is there and `force` is not set, or a folder is.
    """
    for path in paths:
        require_free(path, "file", force=force)
        path.parent.mkdir(parents=True, exist_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step that survives a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    _sync_entry(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace `path` by a JSON object that people can read, in one step."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` by `rows`, a JSON object each, in one step. Half a surrogate pair is not text: it becomes "?"."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_file(path, lines.encode(errors="replace"))


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link `source` to `target`; copy where the file system cannot link."""
    source = source.resolve()  # a hub cache holds symbolic links
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise `OutputError` when the disk of `folder` has less than `needed_bytes` free."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OutputError(
            f"{folder.parent} has {free_bytes / 1e6:,.0f} MB free and this needs "
            f"{needed_bytes / 1e6:,.0f} MB: free some or choose another disk"
        )


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that the disk, the quota or the file size limit is reached."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    # Libraries written in Rust and C++ report the same in words only.
    return "No space left on device" in str(error) or "File too large" in str(error)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against other processes; `OutputError` when one has it. A killed holder lets go."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another process is writing {folder}: wait for it or stop it") from None
        yield
    finally:
        os.close(descriptor)


def _remove(folder: Path, gone: Path) -> None:
    """Remove `folder` under the name `gone`: half of it must not be taken for the whole."""
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync(folder: Path) -> None:
    for entry in sorted(folder.rglob("*")):
        if entry.stat().st_nlink == 1 and entry.is_file():
            entry.chmod(0o644)  # safetensors writes 0600, which a server under another user cannot read
        _sync_entry(entry)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
