"""What the processes of a test run (`pytest -n`) have in common is made by the first one; the others wait for it."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_convert.catalogue import CatalogueFile
from pangu_convert.download import cache_folder, fetch


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold what concerns `path` against other processes; waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a process that is killed lets go
        yield


def once(path: Path, make: Callable[[], object]) -> Path:
    """`path`, made by `make` if it is not there."""
    with alone(path):
        if not path.exists():
            make()
    return path


def fetched(file: CatalogueFile) -> Path:
    """The file in the cache folder. `fetch` refuses where another process downloads; this waits."""
    with alone(cache_folder() / file.file_name):
        return fetch(file, cache_folder())
