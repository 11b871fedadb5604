"""A model hub on loopback that speaks enough of the protocol for the real client: one repository, `owner/repo`."""

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", ".gguf")  # such files are kept by their sha256, and the hub says it
API = re.compile(r"/api/models/owner/repo/(revision|tree)/([^/]+)")
FILE = re.compile(r"/owner/repo/resolve/([^/]+)/(.+)")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def commit_of(folder: Path) -> str:
    """Another content is another commit."""
    return hashlib.sha1(repr(files_of(folder)).encode()).hexdigest()


def described(name: str, data: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    about: dict[str, Any] = {"size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if name.endswith(LARGE):
        about["lfs"] = {"oid": sha256(data), "sha256": sha256(data), "size": len(data), "pointerSize": 130}
    return about


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def serve_hub(
    folder: Path, others: Mapping[str, Path] | None = None, *, damaged: str | None = None
) -> Iterator[str]:
    """Serve the files of `folder` as the branch main, and `others`, branch or tag -> folder; yields the address.

    Folders may change meanwhile. What is there now can also be had by its commit. The file `damaged` comes with other
    bytes than the hub says.
    """
    named = {"main": folder, **(others or {})}

    def answer(path: str) -> tuple[bytes, dict[str, str]]:
        asked = API.fullmatch(path) or FILE.fullmatch(path)
        if not asked:
            return b"", {"X-Error-Code": "RepoNotFound"}
        revision = unquote(asked[1] if "/resolve/" in path else asked[2])
        place = named.get(revision) or next(
            (one for one in named.values() if commit_of(one) == revision), None
        )
        if place is None:
            return b"", {"X-Error-Code": "RevisionNotFound"}
        files, headers = files_of(place), {"X-Repo-Commit": commit_of(place)}
        if "/resolve/" in path:
            name = unquote(asked[2])
            if name not in files:
                return b"", {**headers, "X-Error-Code": "EntryNotFound"}
            data = files[name][::-1] if name == damaged else files[name]
            return data, {**headers, "ETag": f'"{sha256(files[name])}"'}
        if asked[1] == "tree":
            tree = [{"type": "file", "path": name, **described(name, data)} for name, data in files.items()]
            return json.dumps(tree).encode(), headers
        siblings = [{"rfilename": name, **described(name, data)} for name, data in files.items()]
        info = {"id": "owner/repo", "sha": commit_of(place), "siblings": siblings}
        return json.dumps(info).encode(), headers

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def _answer(self) -> bytes:
            body, headers = answer(urlsplit(self.path).path)
            self.send_response(404 if "X-Error-Code" in headers else 200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            return body

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, home: Path) -> None:
    """Have this process ask this hub, and keep what it downloads below `home`."""
    from huggingface_hub import constants

    monkeypatch.setenv("PANGU_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hf"))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def hub_environment(address: str, home: Path) -> dict[str, str]:
    """For a process that asks this hub, and keeps what it downloads below `home`."""
    return {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0",
        "PANGU_HOME": str(home / "home"),
    }
