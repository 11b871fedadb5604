"""The flags of `pangu-serve`, and what they say in one object."""

import argparse
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pangu_server.backends.seam import Device
from pangu_server.environment import EnvironmentParser
from pangu_server.limits import Limits
from pangu_server.logs import LogFormat
from pangu_training.stage.options import whole_number


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How to serve an artifact. Each field but `limits` is a flag, and each of its fields is one."""

    artifact: Path
    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    device: Device = "auto"
    threads: int | None = None  # None: the CPUs that this process may use
    max_batch: int = 16
    served_model_name: tuple[str, ...] = ()
    skip_verify: bool = False
    limits: Limits = field(default_factory=Limits)
    api_key_file: Path | None = None
    cors_origin: tuple[str, ...] = ()
    log_format: LogFormat = "text"
    log_requests: bool = False
    drain_seconds: float = 60


def parser(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    """The command's argument parser, whose verb is `run`."""
    parser = EnvironmentParser(
        prefix="PANGU_SERVE_",
        prog="pangu-serve",
        description="Serve an artifact as an OpenAI-style completion endpoint.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("artifact", type=Path, help="folder that pangu-convert wrote")
    defaults = {**_defaults(ServeOptions), **_defaults(Limits)}

    def add(flag: str, help_text: str, **options: Any) -> None:
        default = defaults[options.get("dest") or flag.removeprefix("--").replace("-", "_")]
        shown = "" if default in (None, False, ()) else " (default: %(default)s)"
        parser.add_argument(flag, default=default, help=help_text + shown, **options)

    add("--host", "address to listen on")
    add("--port", "0 takes a free one", type=whole_number(0, 65535))
    add("--device", "what to compute on", choices=get_args(Device))
    add("--threads", "compute threads (default: the CPUs we may use)", type=whole_number(1))
    add("--max-batch", "completions generated together at most", type=whole_number(1))
    add("--served-model-name", "more model ids to answer to", nargs="+", metavar="NAME")
    add("--skip-verify", "do not check the artifact's hashes before loading", action="store_true")
    add("--api-key-file", "API keys, one a line; also $PANGU_API_KEYS, by commas", type=Path)
    add("--cors-origin", "origins whose pages may call, or *", nargs="+", type=_origin, metavar="ORIGIN")
    add("--max-queued", "requests that may wait; more get 429", type=whole_number(0))
    add("--max-request-seconds", "a request ends then with what it has", type=_seconds)
    add(
        "--max-prompts",
        "completions of one request: prompts times n",
        type=whole_number(1),
        dest="max_choices",
    )
    add("--max-body-bytes", "longest request body; 413 above", type=whole_number(1))
    add("--max-stop-strings", "stop strings of one request", type=whole_number(0))
    add("--max-logprobs", "likeliest tokens a request may ask for", type=whole_number(0))
    add("--log-format", "lines on stderr: text, or a JSON object each", choices=get_args(LogFormat))
    add("--log-requests", "a line for each request when it has ended", action="store_true")
    add("--drain-seconds", "how long running requests may take after SIGTERM", type=_seconds)
    return parser


def options_of(arguments: argparse.Namespace) -> ServeOptions:
    """What was parsed."""
    options: ServeOptions = _fill(ServeOptions, arguments, limits=_fill(Limits, arguments))
    return options


def _fill(cls: type[Any], arguments: argparse.Namespace, **others: Any) -> Any:
    names = {field.name for field in dataclasses.fields(cls)} - others.keys()
    values = {name: getattr(arguments, name) for name in names}
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return cls(**frozen, **others)


def _defaults(cls: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(cls)}


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _origin(text: str) -> str:
    # What browsers send in Origin; with a path or a slash at the end it would never match.
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no origin, such as https://editor.example:8443")
    return text
