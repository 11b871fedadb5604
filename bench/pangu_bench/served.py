"""What is measured: an artifact in a fresh process behind the real server, or a server that runs already."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pangu_training.errors import PanguError

if TYPE_CHECKING:
    import httpx

# The server stops in order when we are gone, even if we were killed (PR_SET_PDEATHSIG, SIGTERM).
LAUNCH = (
    "import ctypes, sys; ctypes.CDLL(None).prctl(1, 15); from pangu_server.cli import main; sys.exit(main())"
)
STOP_SECONDS = 60


class ServedError(PanguError):
    """The server does not start, does not answer, or refuses what is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server that answers. `card` is its model's row of `/v1/models`: what really runs."""

    base_url: str
    model: str
    card: Mapping[str, Any]

    def client_options(self) -> dict[str, Any]:
        """What an `httpx` client needs; the key is the one that OpenAI's own clients send."""
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A server may take its time to answer, and none to take the connection.
        return {"base_url": self.base_url, "headers": headers, "timeout": _timeout(), "trust_env": False}


def identity(endpoint: Endpoint) -> dict[str, Any]:
    """What a running server has, as part of a result's configuration; its port may change."""
    names = ("quantization", "compute_type", "kernel", "backend", "device", "weight_bytes", "source")
    card = endpoint.card
    return {"model": endpoint.model, **{name: card[name] for name in names if name in card}}


def running(base_url: str) -> Endpoint:
    """The server at `base_url`, with or without `/v1`, and the first model that it has.

    Raises:
        ServedError: nothing answers there as such a server does.
    """
    import httpx

    address = base_url.rstrip("/").removesuffix("/v1")
    endpoint = Endpoint(base_url=address, model="", card={})
    try:
        with httpx.Client(**endpoint.client_options()) as client:
            answer = client.get("/v1/models").raise_for_status().json()
        card = answer["data"][0]
        return Endpoint(base_url=address, model=card["id"], card=card)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise ServedError(f"no OpenAI-style server answers at {base_url}: {error}") from None


def file_stem(model: str) -> str:
    """A model's name as the beginning of a file's."""
    return model.replace("/", "_")


class ServerProcess:
    """`pangu-serve ARTIFACT` on a free port, for as long as the context lasts; its log goes to `log`."""

    def __init__(self, artifact: Path, *, device: str, threads: int, log: Path) -> None:
        self._artifact, self._log = artifact, log
        self._options = ("--host", "127.0.0.1", "--port", "0", "--device", device, "--threads", str(threads))

    def __enter__(self) -> Self:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PANGU_SERVE_") and name != "PANGU_API_KEYS"
        }
        self._started_seconds = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, self._artifact, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C is ours: we stop it
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
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r" ready on (http://\S+): ", line):
                return running(found[1]), time.perf_counter() - self._started_seconds
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


def _timeout() -> "httpx.Timeout":
    import httpx

    return httpx.Timeout(None, connect=30)
