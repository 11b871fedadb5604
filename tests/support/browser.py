"""For the tests of the page: a server in a thread, a tab of a real browser, a scripted application behind it."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from support.scripted import END
from support.served import Server

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page

CODE = "return n"


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of `app` under uvicorn in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class Tab:
    """A page in the browser, what it complained about, and what it asked for."""

    def __init__(self, page: "Page", address: str) -> None:
        self.page, self.address = page, address
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.refused: set[int] = set()  # statuses that a test expects; Chromium calls each an error
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self) -> None:
        """Load the page."""
        self.page.goto(self.address)

    def find(self, selector: str) -> "Locator":
        """A visible element."""
        return self.page.locator(f"{selector}:visible")

    def write(self, text: str) -> None:
        """Replace the text of the editor."""
        self.find(".editor textarea").fill(text)

    def text(self) -> str:
        """The text in the editor, without ghosts."""
        return str(self.find(".editor textarea").input_value())

    def _on_console(self, message: "ConsoleMessage") -> None:
        expected = any(f"with a status of {status} " in message.text for status in self.refused)
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(f"{message.text} ({message.location['url']})")


class Scripted(Server):
    """The application over a scripted backend that writes `CODE`, and waits in the middle of it for `go`."""

    def __init__(self, folder: Path) -> None:
        self.go = threading.Event()
        self.go.set()
        super().__init__(folder, self._script)
        self.app = self.client.app

    def count(self, name: str, **labels: str) -> float:
        """A sample, 0 when it is not there yet."""
        return self.metrics.registry.get_sample_value(name, {"model_name": "scripted", **labels}) or 0.0

    def prompts(self) -> list[str]:
        """What was asked for."""
        return [bytes(prompt_ids).decode() for prompt_ids in self.backend.prompts]

    def _script(self, prompt_ids: Sequence[int]) -> Iterator[int]:
        yield from CODE[:3].encode()
        # A token now and then, as a cancelled generation ends at its next; but the page asks for 96, and what
        # waits for `go` must outlast a test's patience with a browser, 20 s.
        while not self.go.wait(0.25):
            yield ord(".")
        yield from CODE[3:].encode()
        yield END
