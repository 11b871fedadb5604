"""A model hub on loopback that speaks enough of the protocol for the real client: one repository, `owner/repo`."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0" * 40


@contextlib.contextmanager
def serve_hub(folder: Path) -> Iterator[str]:
    """Serve the files of `folder`; yields the hub's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def _answer(self) -> bytes:
            path = urlsplit(self.path).path
            file = folder / path.rsplit("/", 1)[-1]
            headers = {"X-Repo-Commit": COMMIT}
            if path == "/api/models/owner/repo/revision/main":
                body = json.dumps({"id": "owner/repo", "sha": COMMIT, "siblings": []}).encode()
            elif path == f"/api/models/owner/repo/tree/{COMMIT}":
                files = [
                    {"type": "file", "path": entry.name, "size": entry.stat().st_size, "oid": "0" * 40}
                    for entry in folder.iterdir()
                ]
                body = json.dumps(files).encode()
            elif path.startswith("/owner/repo/resolve/") and file.is_file():
                body = file.read_bytes()
                headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            else:
                body = b""
                headers["X-Error-Code"] = "EntryNotFound" if "/resolve/" in path else "RepoNotFound"
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
