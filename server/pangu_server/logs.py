"""Log records as lines on stderr: text, or a JSON object each. Neither lets a client write a line of its own.

A record may carry `fields` (a dictionary, by `extra`); both formats show them.
"""

import contextvars
import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
current_request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
PLAIN = re.compile(r"[\w.:/+-]+", re.ASCII)


def configure(format: LogFormat) -> None:
    """Send every record of the process to stderr: pangu-coder2's own from INFO on, others' from WARNING on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("pangu_server").setLevel(logging.INFO)


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
