"""`pangu-serve ARTIFACT`: check it, take the port, load it, answer until SIGTERM."""

import argparse
import os
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pangu_convert.artifact import Artifact, read_artifact, verify
from pangu_server.backends import Device, LoadOptions, load_backend
from pangu_training import command
from pangu_training.errors import PanguError

if TYPE_CHECKING:
    import uvicorn

    from pangu_server.engine import Engine


class ServeError(PanguError):
    """The server cannot start on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Defaults of `pangu-serve`'s flags."""

    host: str = "127.0.0.1"
    port: int = 8000
    device: Device = "auto"
    threads: int | None = None
    max_queued: int = 128
    drain_seconds: int = 60


def parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    default = ServeOptions()
    parser = argparse.ArgumentParser(
        prog="pangu-serve", description="Serve an artifact as an OpenAI-style completion endpoint."
    )
    parser.add_argument("artifact", type=Path, help="folder that pangu-convert wrote")
    parser.add_argument("--host", default=default.host, help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=default.port, help="default: %(default)s; 0 takes a free one"
    )
    parser.add_argument(
        "--device", choices=get_args(Device), default=default.device, help="default: %(default)s"
    )
    parser.add_argument(
        "--threads", type=int, default=default.threads, help="compute threads (default: the CPUs we may use)"
    )
    parser.add_argument(
        "--served-model-name", nargs="+", default=[], metavar="NAME", help="more model ids to answer to"
    )
    parser.add_argument(
        "--max-queued",
        type=int,
        default=default.max_queued,
        help="requests that may wait; more get 429 (default: %(default)s)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=int,
        default=default.drain_seconds,
        help="how long running requests may take after SIGTERM (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-verify", action="store_true", help="do not check the artifact's hashes before loading"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; returns when the requests that were taken have ended.

    Raises:
        ArtifactError: the artifact is not whole or does not load.
        ServeError: the address cannot be listened on.
    """
    artifact = read_artifact(arguments.artifact)
    with listen(arguments.host, arguments.port) as listener:
        if not arguments.skip_verify:
            verify(artifact)
        serve(artifact, listener, arguments)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port`; `ServeError` when it is taken or not ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(
            f"cannot listen on {host}:{port} ({reason}): choose another --port or --host"
        ) from None


def serve(artifact: Artifact, listener: socket.socket, arguments: argparse.Namespace) -> None:
    """Answer on `listener` at once, load the model beside, and stop in order."""
    import uvicorn
    from tokenizers import Tokenizer

    from pangu_server.app import create_app
    from pangu_server.engine import Engine
    from pangu_server.limits import Limits
    from pangu_server.metrics import Metrics

    metrics = Metrics(artifact.manifest.name)
    tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))
    engine = Engine(
        artifact,
        tokenizer,
        metrics,
        model_names=arguments.served_model_name,
        limits=Limits(max_queued=arguments.max_queued),
    )
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(engine),
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=arguments.drain_seconds,
        )
    )
    options = LoadOptions(
        device=arguments.device,
        threads=arguments.threads or len(os.sched_getaffinity(0)),
        on_batch=metrics.batch_size.observe,
    )
    failure: list[Exception] = []

    def load() -> None:
        try:
            engine.load(load_backend(artifact, options))
            announce(engine, listener)
        except Exception as error:  # handed to the main thread, which raises it
            failure.append(error)
            server.should_exit = True

    loader = threading.Thread(target=load, name="load")
    loader.start()
    try:
        run_until_signal(server, listener, engine)
    finally:
        loader.join()
        engine.close()
    if failure:
        raise failure[0]


def run_until_signal(server: "uvicorn.Server", listener: socket.socket, engine: "Engine") -> None:
    """Run the server; on SIGTERM or SIGINT refuse new requests, finish those taken, and return."""
    import signal

    handle_exit = server.handle_exit

    def stop(number: int, frame: object) -> None:
        engine.drain()
        handle_exit(number, frame)  # type: ignore[arg-type]

    server.handle_exit = stop  # type: ignore[method-assign,assignment]
    # uvicorn raises the signal again when it is done, for whoever handled it before: that is us, and we
    # have nothing left to do. Without these the process would die of the signal instead of exiting with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])


def announce(engine: "Engine", listener: socket.socket) -> None:
    """Print what is served and a curl line that works."""
    assert engine.backend is not None
    info, manifest = engine.backend.info, engine.artifact.manifest
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    kernel = f", kernel {info.kernel}" if info.kernel else ""
    print(
        f"{manifest.name} ready on {address}: {info.name}, {info.compute_type}{kernel} on {info.device}, "
        f"{info.threads} threads, {info.weight_bytes / 1e9:.3f} GB of weights\n"
        f"curl -s {address}/v1/completions -H 'Content-Type: application/json' "
        """-d '{"prompt": "def fibonacci(n):", "max_tokens": 96, "temperature": 0, "stop": ["\\n\\n"]}'""",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pangu-serve`."""
    return command.run(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
