"""A model hub on loopback that takes uploads as the real client sends them: repositories, branches, LFS, commits."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from support.hub import LARGE, described, sha256

TOKEN = "hf_averysecrettoken"
Files = dict[str, bytes]
LARGE_TOO = (*LARGE, ".bin")


def commit_of(files: Files) -> str:
    """Another content is another commit."""
    return hashlib.sha1(repr(files).encode()).hexdigest()


@dataclass
class Hub:
    """What it has, what was asked, and what it is to refuse."""

    address: str = ""
    repositories: dict[str, dict[str, Files]] = field(default_factory=dict)  # name -> branch -> files
    private: set[str] = field(default_factory=set)
    objects: Files = field(default_factory=dict)  # large files that were sent, committed or not
    commits: list[tuple[str, str, str]] = field(default_factory=list)  # repository, branch, message
    requests: list[str] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)  # a part of "METHOD path" -> status

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any]:
        """The status, and what goes as JSON."""
        self.requests.append(f"{method} {path}")
        for part, status in self.refusals.items():
            if part in self.requests[-1]:
                return status, {"error": "as the test wants"}
        if path.startswith("/objects/") and method == "PUT":
            assert sha256(body) == path.rpartition("/")[2]
            self.objects[sha256(body)] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [*map(self._action, json.loads(body)["objects"])]}
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            data = self._files(found[1], unquote(found[2])).get(found[3])
            return (404, {}) if data is None else (200, data)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/([^/]+)", path):
            return self._of_branch(found[1], found[2], unquote(found[3]), body)
        return 404, {"error": path}

    def _files(self, name: str, revision: str) -> Files:
        """Those of a branch, or of what it holds now by its commit."""
        branches = self.repositories[name]
        commits = {commit_of(files): files for files in branches.values()}
        return branches.get(revision) or commits.get(revision, {})

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
        self.repositories[name] = {"main": {".gitattributes": b""}}
        if asked.get("visibility") == "private":
            self.private.add(name)
        return 200, {"url": f"{self.address}/{name}"}

    def _action(self, large: dict[str, Any]) -> dict[str, Any]:
        if large["oid"] in self.objects:
            return large
        return {**large, "actions": {"upload": {"href": f"{self.address}/objects/{large['oid']}"}}}

    def _of_branch(self, name: str, what: str, branch: str, body: bytes) -> tuple[int, Any]:
        branches = self.repositories[name]
        if what == "branch":
            status = 409 if branch in branches else 200
            branches.setdefault(branch, dict(branches["main"]))
            return status, {"error": "Reference already exists"} if status == 409 else {}
        if branch not in branches:
            return 404, {"error": "no such branch"}
        files = branches[branch]
        if what == "revision":
            siblings = [{"rfilename": one, **described(one, data)} for one, data in files.items()]
            return 200, {
                "id": name,
                "sha": commit_of(files),
                "siblings": siblings,
            }
        if what == "preupload":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LARGE_TOO) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if what != "commit":
            return 404, {"error": what}
        message = ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", commit_of(files)) != commit_of(files):
                    return 412, {"error": "A commit has happened since."}
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.objects[value["oid"]]
        self.commits.append((name, branch, message))
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{len(self.commits)}", "commitOid": "0" * 40}


@contextlib.contextmanager
def serve_uploads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories, which this process's client asks, with `TOKEN`."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            status, value = hub.answer(
                "GET" if self.command == "HEAD" else self.command,
                path,
                self.headers.get("Authorization"),
                body,
            )
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if isinstance(value, bytes):
                self.send_header("ETag", f'"{sha256(data)}"')
                self.send_header("X-Repo-Commit", sha256(data)[:40])
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
