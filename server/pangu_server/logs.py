"""Log records as lines on stderr: text, or a JSON object each. Neither lets a client write a line of its own.

A record may carry `fields` (a dictionary, by `extra`); both formats show them. Nobody waits for the reader of stderr: a
thread of its own writes, and what it cannot write in time is dropped and counted.
"""

import contextvars
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
current_request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
PLAIN = re.compile(r"[\w.:/+-]+", re.ASCII)
MOST_LINES = 10_000  # that wait for the reader of stderr
FLUSH_SECONDS = 1.0  # that the end of the process waits for it


class Lines(logging.Handler):
    """Formats where it is called, writes to `file` (a descriptor) in a thread; `dropped` counts what was lost."""

    def __init__(self, file: int, most: int = MOST_LINES) -> None:
        super().__init__()
        self.dropped = 0
        self._file, self._lines = file, queue.Queue[str](most)
        self._told = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`. Never waits."""
        try:
            line = self.format(record)
        except Exception:  # as logging's own handlers: a bad record is not the caller's end
            self.handleError(record)
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        """Wait until all is written, but not for a reader that does not read."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._put(line)
                if self._lines.empty() and self.dropped > self._told:
                    self._put(
                        f"{self.dropped - self._told} lines of the log were dropped: nobody reads stderr"
                    )
                    self._told = self.dropped
            except OSError:  # nobody will ever read it
                self.dropped += 1
            finally:
                self._lines.task_done()

    def _put(self, line: str) -> None:
        data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        while data:
            data = data[os.write(self._file, data) :]


def configure(format: LogFormat) -> Lines:
    """Send every record of the process to stderr: pangu-coder2's own from INFO on, others' from WARNING on."""
    handler = Lines(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("pangu_server").setLevel(logging.INFO)
    return handler


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, the record's fields, and a traceback as a string."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        entry = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """`TIME LEVEL logger: message name=value …`, with JSON's quotes around what is not plain."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in record.getMessage())
        fields = "".join(f" {name}={_text(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {message}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    request_id = current_request_id.get()
    return {"request_id": request_id, **fields} if request_id else fields


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if PLAIN.fullmatch(text) else json.dumps(text)
