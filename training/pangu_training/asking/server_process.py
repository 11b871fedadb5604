"""An artifact behind the real server, in a fresh process.

The one place where an earlier stage uses a later one: by its command, over HTTP, without an import.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pangu_training.asking.endpoint import Endpoint, ServedError, running
from pangu_training.stage.command import ServerOptions

# The server stops in order when we are gone, even if we were killed (PR_SET_PDEATHSIG, SIGTERM).
LAUNCH = (
    "import ctypes, sys; ctypes.CDLL(None).prctl(1, 15); from pangu_server.cli import main; sys.exit(main())"
)
STOP_SECONDS = 60
POLL_SECONDS = 0.1  # more often would take from the loading that is measured
REQUEST_SECONDS = 24 * 3600  # nobody waits at a screen: an answer that ends early is a wrong one


class ServerProcess:
    """`pangu-serve ARTIFACT` on a free port, for as long as the context lasts; its log goes to `log`."""

    def __init__(self, artifact: Path, options: ServerOptions, *, log: Path) -> None:
        self._artifact, self._log = artifact, log
        port = _free_port()
        self._address = f"http://127.0.0.1:{port}"
        self._options = (
            *("--host", "127.0.0.1", "--port", str(port), "--max-request-seconds", str(REQUEST_SECONDS)),
            *("--device", options.device, "--engine", options.engine, "--threads", str(options.threads)),
            *(("--cache-memory", options.cache_memory) if options.cache_memory else ()),
        )

    def __enter__(self) -> Self:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PANGU_SERVE_") and name != "PANGU_API_KEYS"
        }
        self._started_seconds = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", LAUNCH, self._artifact, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops it
            )
        return self

    @property
    def process_id(self) -> int:
        """Of the server."""
        return self._process.pid

    def ready(self) -> tuple[Endpoint, float]:
        """The endpoint once it answers, and the seconds that took from the start.

        Raises:
            ServedError: it ended instead; the message has its last word.
        """
        while self._process.poll() is None:
            if _is_ready(self._address):
                return running(self._address), time.perf_counter() - self._started_seconds
            time.sleep(POLL_SECONDS)
        words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
        raise ServedError(f"{self._artifact} cannot be served: {words[-1]} (whole log: {self._log})")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process, contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _is_ready(address: str) -> bool:
    """Whether `/ready` answers with 200: until then nobody listens, or the model loads (503)."""
    import httpx

    try:
        return httpx.get(f"{address}/ready", trust_env=False, timeout=REQUEST_SECONDS).is_success
    except httpx.HTTPError:
        return False
