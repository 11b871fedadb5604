"""Chat templates rendered in processes of their own, which are ended and replaced when one takes too long or too much.

    python -m pangu_server.rendering     the templates on the first line of stdin, then a conversation a line

A template is a program of whoever made the model. It may loop for hours: then a request is refused, and nobody else,
nor the end of the server, waits for it.
"""

import contextlib
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from typing import Any

from pangu_convert.chat_template import ChatTemplates
from pangu_server.errors import NotReady
from pangu_training.stage.bounded import limit_bytes, limit_seconds

MOST_WORKERS = 2  # the second one starts when a conversation comes while another is being rendered
MOST_SECONDS = 2  # of computing; a conversation that fills a context takes milliseconds
MOST_WAITING_SECONDS = 60  # of anything, on a machine that has other work
MOST_BYTES = 1 << 28
MOST_CHARACTERS = 8 << 20  # of the text; more than any context holds
MOST_WORDS = 1000  # characters of an error: a template may put a whole conversation into one
CLOSED = "the server is shutting down: try another one"
NEWLINE = b"\n"


class RenderingFailed(Exception):
    """A template refused a conversation, or it had to be ended; says why. `param` names the request's field."""

    def __init__(self, why: str, param: str = "messages") -> None:
        super().__init__(why)
        self.param = param


class Renderers:
    """Up to `MOST_WORKERS` processes that know the templates. None runs before the first conversation."""

    def __init__(self, templates: ChatTemplates) -> None:
        self._greeting = _line([templates.sources, templates.special_tokens])
        # The one that was given back last goes first: it is the most likely to run already.
        self._idle: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(MOST_WORKERS):
            self._idle.put(None)
        self._running: set[subprocess.Popen[bytes]] = set()
        self.close = weakref.finalize(self, _end_all, self._running, self._idle)

    def render(self, conversation: Mapping[str, Any]) -> str:
        """The text of a conversation, given by the parameters of `Renderer.render`. From any thread; blocks.

        Raises:
            RenderingFailed: the template raised something, or took too long or too much memory.
            NotReady: it is closed, or no process can be started.
        """
        worker = self._idle.get()
        try:
            if not self.close.alive:
                raise NotReady(CLOSED)
            if worker is None or worker.poll() is not None:  # somebody may have ended it
                worker = self._start()
            answer = self._asked(worker, _line(conversation))
        finally:
            self._idle.put(worker if worker in self._running else None)
        if "text" not in answer:
            raise RenderingFailed(answer["error"], answer["param"])
        return str(answer["text"])

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C is for the server, which ends it. -P: see `stage.bounded`.
        command = [sys.executable, "-P", "-m", __name__]
        try:
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:  # no descriptors, or no memory, just now
            raise NotReady(f"no process for the chat template can be started ({error}): try again") from None
        self._running.add(worker)
        if not self.close.alive:
            worker.kill()  # closed meanwhile
        _send(worker, self._greeting)
        return worker

    def _asked(self, worker: subprocess.Popen[bytes], line: bytes) -> dict[str, str]:
        _send(worker, line)
        answer = _received(worker, time.monotonic() + MOST_WAITING_SECONDS)
        if answer is not None:
            return dict(json.loads(answer))
        _end(worker)
        self._running.discard(worker)
        if not self.close.alive:
            raise NotReady(CLOSED)
        if worker.returncode == -signal.SIGXCPU:
            raise RenderingFailed(f"it computes for more than {MOST_SECONDS} seconds")
        if worker.returncode == -signal.SIGKILL:
            raise RenderingFailed(f"it was ended, or did not end within {MOST_WAITING_SECONDS} seconds")
        raise RenderingFailed("it takes too much memory")


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + NEWLINE


def _send(worker: subprocess.Popen[bytes], line: bytes) -> None:
    assert worker.stdin is not None
    with contextlib.suppress(OSError):  # it is gone: its answer says so
        worker.stdin.write(line)
        worker.stdin.flush()


def _received(worker: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """A line of what it writes; None when it has ended, or the time is over."""
    assert worker.stdout is not None
    poll = select.poll()  # not `select`, which knows the first 1,024 descriptors only
    poll.register(worker.stdout, select.POLLIN)
    pieces: list[bytes] = []
    while not (pieces and pieces[-1].endswith(NEWLINE)):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        pieces.append(os.read(worker.stdout.fileno(), 1 << 20))
        if not pieces[-1]:
            return None
    return b"".join(pieces)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End it if it has not ended, and let go of its pipes."""
    if worker.poll() is None:
        worker.kill()
    with contextlib.suppress(OSError):  # a line that it never read
        worker.__exit__(None, None, None)


def _end_all(
    workers: set[subprocess.Popen[bytes]], idle: "queue.LifoQueue[subprocess.Popen[bytes] | None]"
) -> None:
    for worker in list(workers):
        worker.kill()
    drained = []
    with contextlib.suppress(queue.Empty):  # whoever waits for one that is not idle lets go of it
        while True:
            drained.append(idle.get_nowait())
    for unused in drained:
        if unused is not None:
            _end(unused)
        idle.put(None)


def main() -> int:
    """Render what comes on stdin until it ends. A worker that runs out of memory ends: what is left is in pieces."""
    from pangu_convert.rendering import NoTools, Renderer

    # The server alone decides when this ends, even if a signal goes to all of its group or unit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    limit_bytes(MOST_BYTES)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    renderer = Renderer(*json.loads(sys.stdin.buffer.readline()))
    for line in sys.stdin.buffer:
        limit_seconds(MOST_SECONDS)
        try:
            text = renderer.render(**json.loads(line))
            if len(text) > MOST_CHARACTERS:
                raise ValueError(f"it renders more than {MOST_CHARACTERS:,} characters")
            answer = {"text": text}
        except MemoryError:
            return 2
        except Exception as error:  # of whatever kind: the template's author chose it
            param = "tools" if isinstance(error, NoTools) else "messages"
            answer = {"error": _in_words(error), "param": param}
        sys.stdout.buffer.write(json.dumps(answer).encode() + NEWLINE)
        sys.stdout.buffer.flush()
    return 0


def _in_words(error: Exception) -> str:
    from jinja2.exceptions import TemplateError

    said = " ".join(str(error).split())[:MOST_WORDS]
    return said if isinstance(error, TemplateError | ValueError) else f"{type(error).__name__}: {said}"


if __name__ == "__main__":
    sys.exit(main())
