"""What a verb may write over: nothing that it reads, and with --force only what a `pangu-*` command wrote.

Options say which of their paths are written: `option("the folder to make", writes="folder")`. All their other paths are
read. A text that names a file in a way of its own has `reads`, a function that finds the path.

    writes="folder"   a folder that is made whole; with --force it takes the place of an older one
    writes="file"     the same of a file
    writes="results"  a file that grows or is made anew by the same command, or a folder that gets files
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pangu_training.stage.checkpoint import CONFIG, PROVENANCE_FILES, SHARD_INDEX, TEXT_FILES
from pangu_training.stage.errors import OutputError
from pangu_training.stage.files import read_object
from pangu_training.stage.identity import MANIFEST
from pangu_training.stage.signed import is_as_written

Writes = Literal["folder", "file", "results"]
CARD = "README.md"  # says itself whether we wrote it
# Checkpoints of earlier versions do not say which files are theirs.
CHECKPOINT_FILES = {CONFIG, SHARD_INDEX, *TEXT_FILES, *PROVENANCE_FILES, CARD}
WEIGHTS = ".safetensors"


def check_paths(options: Any) -> None:
    """Refuse `options` that write over what they read or what is there, or two things to one place.

    Raises:
        OutputError: an output is an input or lies inside one, contains one that would go with it, or is named twice.
            And as `require_free` does.
    """
    paths = list(_paths_of(options))
    for path, _ in paths:
        _require_end(path)
    outputs = [(path, writes) for path, writes in paths if writes]
    for path, writes in outputs:
        require_apart(path, [read for read, written in paths if not written], writes=writes)
    places = [path.resolve() for path, _ in outputs]
    for place, (path, writes) in zip(places, outputs, strict=True):
        if places.count(place) > 1:
            raise OutputError(f"{path} cannot hold two things: give each a place of its own")
        if writes != "results":
            require_free(path, writes, force=_forced(options))


def require_apart(output: Path, inputs: Iterable[Path], *, writes: Writes = "folder") -> None:
    """Raise `OutputError` when writing `output` would change or delete one of `inputs`."""
    place = output.resolve()
    for path in inputs:
        for source in _places(path):
            if place == source or (place.exists() and place.samefile(source)):
                how = "is"
            elif writes == "folder" and source.is_relative_to(place):
                how = "contains"
            elif place.is_relative_to(source):
                how = "lies inside"
            else:
                continue
            raise OutputError(f"the output {output} {how} {path}, which is read: choose another output")


def require_free(path: Path, writes: Writes, *, force: bool) -> None:
    """Raise `OutputError` when something is at `path`: with `force` only unless it may be replaced.

    A file of any content is; of a folder each file must be one that a `pangu-*` command wrote.
    """
    if not path.exists():
        return
    if not (path.is_dir() if writes == "folder" else path.is_file()):
        raise OutputError(f"{path} is not a {writes}, and one is to be written: choose another output")
    if not force:
        raise OutputError(f"{path} exists already: choose another output, or replace it with --force")
    if writes == "folder":
        _require_written(path)


def _require_end(path: Path) -> None:
    try:
        path.resolve()
    except RuntimeError:  # as Python calls it
        raise OutputError(f"{path} is a link that leads to itself: name another path") from None


def _require_written(path: Path) -> None:
    written = _written(path)
    others = (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
    stranger = next((name for file in others if (name := str(file.relative_to(path))) not in written), None)
    if stranger is not None:
        raise OutputError(
            f"{path} holds {stranger}, which no pangu command wrote: --force does not delete it; choose another "
            "output, or remove it yourself"
        )


def _paths_of(options: Any) -> Iterator[tuple[Path, Writes | None]]:
    """Each path that is given, and how it is written: None when it is read."""
    for field in dataclasses.fields(options):
        value, metadata = getattr(options, field.name), field.metadata
        if "nested" in metadata:
            yield from _paths_of(value)
            continue
        for one in value if type(value) is tuple else (value,):
            path = metadata["reads"](one) if one is not None and "reads" in metadata else one
            if isinstance(path, Path):
                yield path, metadata.get("writes")


def _forced(options: Any) -> bool:
    fields = {field.name: field.metadata for field in dataclasses.fields(options)}
    inner = (getattr(options, name) for name, metadata in fields.items() if "nested" in metadata)
    return bool(getattr(options, "force", False)) or any(map(_forced, inner))


def _places(path: Path) -> Iterator[Path]:
    """Where the file or folder is, and where symbolic links in the folder lead: a hub cache is made of these."""
    if path.exists():
        yield path.resolve()
    if path.is_dir():
        yield from (entry.resolve() for entry in path.iterdir() if entry.is_symlink() and entry.exists())


def _written(folder: Path) -> set[str]:
    """The files in `folder` that we wrote, by the records in it: manifest.json, import.json, training.json."""
    written: set[str] = set()
    for name in (MANIFEST, *PROVENANCE_FILES):
        try:
            record = read_object(folder / name)
        except (OSError, ValueError):
            continue
        if "source" in record:  # others have manifests too
            if isinstance(record.get("files"), dict):
                written |= {name, *record["files"]}
            else:
                written |= {*CHECKPOINT_FILES, *(file.name for file in folder.glob(f"*{WEIGHTS}"))}
            if is_as_written(folder / CARD):
                written.add(CARD)
    return written
