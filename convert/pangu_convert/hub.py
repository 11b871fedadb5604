"""A model of the Hugging Face hub, by commit: `OWNER/NAME`, or a GGUF file in it, `OWNER/NAME/PATH.gguf`.

Each commit has a folder of its own in the cache. What is asked for of it appears there when it is whole:

    hub/OWNER--NAME/COMMIT/checkpoint/      for a GGUF file its path, with -- for each /
        hub.json                            the sha256 of every file

Files of the cache are linked into checkpoints. One that was changed there is fetched again.
"""

import glob
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_convert.artifact import CHECKPOINT_CONFIG
from pangu_convert.download import DownloadError, cache_folder
from pangu_training.stage.checkpoint import (
    ADAPTER_CONFIG,
    CONFIG,
    QUANTIZE_CONFIGS,
    TEXT_FILES,
    TRAINED,
)
from pangu_training.stage.files import read_object
from pangu_training.stage.identity import MANIFEST, hash_files
from pangu_training.stage.output import is_disk_full, locked, require_free_space, write_json

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

HUB_SOURCE = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+\.gguf))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"
RECORD = "hub.json"
WANTED = (
    CONFIG,
    "*.safetensors",
    "*.safetensors.index.json",
    *TEXT_FILES,
    *QUANTIZE_CONFIGS,
    "model.bin",
    "vocabulary.json",
    MANIFEST,
    CHECKPOINT_CONFIG,
)
WANTED_OF_ADAPTERS = (ADAPTER_CONFIG, TRAINED)  # the second says which base it was trained on
PART = re.compile(r"-\d{5}-of-(\d{5}\.gguf)")
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """What was fetched: a checkpoint's folder or a GGUF file, and where it came from."""

    path: Path
    origin: Mapping[str, Any]


def fetch_hub_model(source: str, revision: str | None) -> HubModel:
    """Download `source` of a branch, tag or commit (default: main) unless it is there; resumes.

    Nothing is asked of the hub for a whole commit that is there.

    Raises:
        DownloadError: the hub cannot be reached or does not have it, or gave other bytes than it says.
    """
    repository, file = _named(source)
    revision = revision or MAIN
    folder, part = _folder(repository), _part(file)
    commit = revision
    if not COMMIT.fullmatch(revision) or not _is_whole(folder / commit / part):
        info = _ask(repository, revision, _commits(source, but=revision))
        commit = str(info.sha)
        if not _is_whole(folder / commit / part):
            _download(repository, _wanted(info, repository, file), commit, folder / commit / part)
    origin = {"source": repository, "revision": revision, "commit": commit}
    path = folder / commit / part
    return HubModel(path=path / file if file else path, origin=origin | ({"path": file} if file else {}))


def commit_of(source: str, revision: str | None) -> str:
    """The commit of a branch, tag or commit (default: main) of `source`; `DownloadError` as `fetch_hub_model`."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    repository, _ = _named(source)
    return str(_ask(repository, revision or MAIN, _commits(source, but=revision or MAIN)).sha)


def _named(source: str) -> tuple[str, str | None]:
    """The repository, and the file in it."""
    matched = HUB_SOURCE.fullmatch(source)
    assert matched, source
    return matched[1], matched[2]


def _folder(repository: str) -> Path:
    return cache_folder() / "hub" / repository.replace("/", "--")


def _part(file: str | None) -> str:
    return (file or "checkpoint").replace("/", "--")


def _commits(source: str, *, but: str) -> list[str]:
    """Those of `source` that the cache has."""
    repository, file = _named(source)
    found = (entry.parent.name for entry in _folder(repository).glob(f"*/{glob.escape(_part(file))}"))
    return sorted(commit for commit in found if commit != but)


def _ask(repository: str, revision: str, there: Sequence[str]) -> "ModelInfo":
    """What the hub says of the revision: its commit and files. Commits that are `there` go into the error."""
    import httpx2  # what huggingface_hub speaks
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
        if not COMMIT.fullmatch(str(info.sha)):
            raise DownloadError(
                f"the hub names {info.sha!r} as the commit of {repository}, which it is not: ask another hub"
            )
        return info
    except (httpx2.HTTPError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        # Its own errors derive from the first two; an answer of another form ends in the others.
        hint = f", or --revision {' or '.join(there)}, which the cache has" if there else ""
        raise _failure(repository, revision, error, hint) from None


def _wanted(info: "ModelInfo", repository: str, file: str | None) -> Mapping[str, Any]:
    """The files to fetch: name -> what the hub says of it."""
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    ggufs = sorted(name for name in files if name.lower().endswith(".gguf"))
    if file:
        if file not in files:
            raise DownloadError(
                f"{repository} has no {file}: it has {', '.join(ggufs[:10]) or 'no GGUF file at all'}"
            )
        form = PART.sub(r"-?????-of-\1", glob.escape(file))  # all parts of a model that is cut into several
        return {name: files[name] for name in files if fnmatch(name, form)}
    adapter = ADAPTER_CONFIG in files
    if CONFIG not in files and ggufs and not adapter:
        raise DownloadError(
            f"{repository} holds GGUF files and no checkpoint: import one of them, {repository}/{ggufs[0]}"
        )
    forms = (*WANTED, *WANTED_OF_ADAPTERS) if adapter else WANTED
    # Folders in it hold other forms of the model.
    return {
        name: files[name] for name in files if "/" not in name and any(fnmatch(name, form) for form in forms)
    }


def _download(repository: str, files: Mapping[str, Any], commit: str, target: Path) -> None:
    """Fetch `files` into `target`, which appears when they are all there with the hashes that the hub says."""
    import httpx2
    from huggingface_hub import snapshot_download

    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial):
        require_free_space(partial, sum(file.size or 0 for file in files.values()) - _size_bytes(partial))
        patterns = [glob.escape(name) for name in files]
        try:
            snapshot_download(repository, revision=commit, local_dir=partial, allow_patterns=patterns)
        except (httpx2.HTTPError, OSError) as error:
            if is_disk_full(error):
                raise
            raise _failure(repository, commit, error) from None
        names = [name for name in files if (partial / name).is_file()]
        hashes = hash_files(partial, names, "hashing the download")
        _require_right(repository, files, hashes, partial)
        write_json(partial / RECORD, {"files": hashes})
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's, for resuming
        shutil.rmtree(target, ignore_errors=True)  # changed since
        partial.rename(target)


def _require_right(
    repository: str, files: Mapping[str, Any], hashes: Mapping[str, str], partial: Path
) -> None:
    """Raise `DownloadError`, and forget what was fetched, unless it is what the hub says."""
    for name, file in files.items():
        stated = file.lfs.sha256 if file.lfs else None
        if name not in hashes or (stated and hashes[name] != stated):
            shutil.rmtree(partial)
            raise DownloadError(f"{repository}: {name} did not come as the hub says it is: run it again")


def _is_whole(folder: Path) -> bool:
    """Whether what was fetched into `folder` is there as it came."""
    try:
        files = read_object(folder / RECORD)["files"]
        return bool(files == hash_files(folder, files, "checking the download"))
    except (OSError, ValueError, KeyError):
        return False


def _failure(repository: str, revision: str, error: Exception, hint: str = "") -> DownloadError:
    at = "" if revision == MAIN else f" at {revision}"
    reason: Sequence[str] = str(error).splitlines() or (type(error).__name__,)
    return DownloadError(
        f"{repository}{at} could not be fetched from the hub ({reason[0]}): check the name and the network, or "
        f"give a local folder{hint}"
    )


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
