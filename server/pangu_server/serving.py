"""Runs the application on uvicorn: answer at once, load the model meanwhile, stop in order."""

import asyncio
import contextlib
import functools
import logging
import math
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from pangu_convert.artifact import Artifact, verify
from pangu_server.access import KEYS_VARIABLE, Keys, read_access
from pangu_server.app import create_app
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions
from pangu_server.connections import Connection, LoopErrors, allowed_connections
from pangu_server.encoding import read_tokenizer
from pangu_server.engine import Engine
from pangu_server.listening import forget, is_loopback, url
from pangu_server.logs import configure
from pangu_server.metrics import Metrics
from pangu_server.options import ServeOptions
from pangu_server.protection import protect
from pangu_training.stage.command import serving_threads, usable_cores

KEEP_ALIVE_SECONDS = 75  # more than proxies keep an idle connection (60), so that they close it, not we
REPEAT_SECONDS = 1  # `timeout` and some supervisors signal a process and its group: still one stop
FLUSH_SECONDS = 5  # for the last events of streams, after the drain's deadline has ended them

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: it would raise each signal again when it is done."""

    def __init__(
        self,
        app: ASGIApp,
        drain_seconds: float,
        *,
        max_connections: int = 1000,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], partial(Connection, max_connections=max_connections)),
            loop="asyncio",  # `Connection` knows its ways
            ws="none",
            ssl_certfile=certificate,
            ssl_keyfile=key,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(drain_seconds) + FLUSH_SECONDS,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: `stop_on_signal` has been there before."""
        yield


def serve(
    artifact: Artifact, listener: socket.socket, options: ServeOptions, environment: Mapping[str, str]
) -> None:
    """Serve until SIGTERM or Ctrl-C. `environment` may hold API keys."""
    log = configure(options.log_format)
    keys = Keys(lambda: read_access(options.api_key_file, environment))
    if keys.access.open and not is_loopback(listener):
        logger.warning(
            "%s answers everyone who reaches it: set --api-key-file or %s", url(listener), KEYS_VARIABLE
        )
    limits = options.limits
    metrics = Metrics(artifact.manifest.name)
    metrics.watch_log(lambda: log.dropped)
    engine = Engine(
        artifact,
        read_tokenizer(artifact),
        metrics,
        model_names=options.served_model_name,
        adapters=[name for name, _ in options.lora],
        limits=limits,
        fim_order=None if options.fim_order == "auto" else options.fim_order,
    )
    app = protect(
        create_app(engine),
        keys=keys,
        max_body_bytes=limits.max_body_bytes,
        cors_origins=options.cors_origin,
        log_requests=options.log_requests,
    )
    server = Server(
        app,
        options.drain_seconds,
        max_connections=allowed_connections(limits.max_connections),
        certificate=options.ssl_certfile,
        key=options.ssl_keyfile,
    )
    close = functools.cache(engine.close)  # once, whoever comes first
    # At its deadline the drain ends what still runs: those clients get their text so far, and [DONE].
    deadline = threading.Timer(options.drain_seconds, close)
    stop_on_signal(server, engine, deadline)
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=keys.reload, name="keys").start())
    failure: list[Exception] = []

    def load() -> None:
        try:
            if not options.skip_verify:
                verify(artifact)
            backend = load_backend(artifact, load_options(options, metrics))
            engine.grammars.prepare(engine.vocabulary_of(backend))
            engine.load(backend)
            if engine.chat is not None and (fault := engine.chat.try_out()):
                logger.warning("chats will be refused: the chat template cannot be used (%s)", fault)
            announce(engine, listener, options)
        except Exception as error:  # handed to the main thread, which raises it
            failure.append(error)
            server.should_exit = True

    loader = threading.Thread(target=load, name="load")
    loader.start()
    server.run(sockets=[listener])
    if loader.is_alive() and not failure:
        log.flush()
        forget(options.uds)
        os._exit(0)  # a library that loads cannot be interrupted, and nobody was promised anything yet
    loader.join()
    deadline.cancel()
    if deadline.is_alive():
        deadline.join()
    close()
    log.flush()
    if failure:
        raise failure[0]


def load_options(options: ServeOptions, metrics: Metrics) -> LoadOptions:
    """What of `options` is the backend's; its batches are counted in `metrics`."""
    return LoadOptions(
        device=options.device,
        engine=options.engine,
        threads=options.threads or serving_threads(),
        max_batch=options.max_batch,
        cache_bytes=options.cache_bytes,
        draft=options.draft,
        graphs=options.graphs,
        adapters=options.lora,
        on_batch=metrics.batch_size.observe,
    )


def stop_on_signal(server: uvicorn.Server, engine: Engine, deadline: threading.Timer) -> None:
    """On SIGTERM or SIGINT refuse new requests and finish those taken; on a second one leave at once."""
    first_seconds: float | None = None

    def stop(number: int, frame: object) -> None:
        nonlocal first_seconds
        if first_seconds is None:
            first_seconds = time.monotonic()
            server.should_exit = True
            engine.drain()
            deadline.start()
        elif time.monotonic() - first_seconds > REPEAT_SECONDS:
            os._exit(128 + number if server.server_state.tasks else 0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def announce(engine: Engine, listener: socket.socket, options: ServeOptions) -> None:
    """Print what is served, what computes it and why, and a curl line that works."""
    assert engine.backend is not None
    info, manifest = engine.backend.info, engine.artifact.manifest
    address = url(listener, "https" if options.ssl_certfile else "http")
    socket_flag = f"--unix-socket {shlex.quote(str(options.uds))} " if options.uds else ""
    why = f" ({info.why})" if info.why else ""
    backend = f"{info.name}, " if info.name != info.engine else ""
    kernel = f", kernel {info.kernel}" if info.kernel else ""
    print(
        f"{manifest.name} ready on {address}: {info.engine} engine{why}: {backend}{info.compute_type}{kernel} "
        f"on {info.device} with {threads_in_words(info.threads, asked=options.threads is not None)}, "
        f"{info.weight_bytes / 1e9:.3f} GB of weights\n"
        f"curl -s {socket_flag}{address}/v1/completions -H 'Content-Type: application/json' "
        """-d '{"prompt": "def fibonacci(n):", "max_tokens": 96, "temperature": 0, "stop": ["\\n\\n"]}'""",
        flush=True,
    )
    if info.caution:
        print(f"caution: {info.caution}", flush=True)
    if info.engine == "ctranslate2" and options.cache_bytes is not None:
        print(
            "caution: --cache-memory has no effect: CTranslate2's library sizes its cache itself", flush=True
        )


def threads_in_words(threads: int, *, asked: bool) -> str:
    """How many compute threads there are, and why."""
    count, cores = f"{threads} thread{'s' * (threads > 1)}", usable_cores()
    if asked:
        return f"{count} (--threads)"
    return f"{count} (of {cores} cores one is left to other programs)" if cores > 1 else f"{count} (one core)"
