"""A loaded artifact in this process: text in, text out, by the server's engine and without HTTP.

A request is OpenAI's text completion, checked and encoded as the endpoint does it. The engine runs on its own event
loop in its own thread: a caller may have a loop too, as notebooks do. Requests from several threads are generated
together.
"""

import asyncio
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from pangu_convert.artifact import read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions
from pangu_server.encoding import read_tokenizer
from pangu_server.engine import Engine
from pangu_server.errors import NotReady, RequestError
from pangu_server.generation import GenerationOptions, Prompt
from pangu_server.limits import Limits
from pangu_server.metrics import Metrics
from pangu_server.protocol.completion import CompletionRequest

# Nobody else waits: a request takes what it takes.
LIMITS = Limits(max_request_seconds=float("inf"))


def load_model(path: str | os.PathLike[str], options: LoadOptions) -> "Model":
    """See `pangu_server.load`."""
    artifact = read_artifact(Path(path))
    engine = Engine(artifact, read_tokenizer(artifact), Metrics(artifact.manifest.name), limits=LIMITS)
    engine.load(load_backend(artifact, options))
    return Model(engine)


class Model:
    """An engine that has its backend; `close` it, or use it as a context manager."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="generate", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()  # after `close` nothing is given to the loop
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int = 64,
        suffix: str | None = None,
        stop: str | Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """What follows `prompt`, or stands between it and `suffix`. Temperature 0 is greedy.

        Raises:
            RequestError: a value is out of bounds, too long for the context, or the model cannot fill holes.
            NotReady: the model is closed.
            GenerationFailed: the model failed.
        """
        sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
        return "".join(self._pieces(prompt, max_tokens, suffix, stop, stream=False, **sampling))

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 64,
        suffix: str | None = None,
        stop: str | Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The pieces of what `complete` would return, as they come. Leaving them early cancels the rest.

        Nothing is generated, and nothing raised, before the first piece is asked for.
        """
        sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
        return self._pieces(prompt, max_tokens, suffix, stop, stream=True, **sampling)

    def close(self) -> None:
        """Cancel what still runs and release the model."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._engine.close()
        asyncio.run_coroutine_threadsafe(_others_end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _pieces(
        self, prompt: str, max_tokens: int, suffix: str | None, stop: str | Sequence[str], **others: Any
    ) -> Iterator[str]:
        stop = stop if isinstance(stop, str) else list(stop)
        fields = {"prompt": prompt, "max_tokens": max_tokens, "suffix": suffix, "stop": stop, **others}
        try:
            request = CompletionRequest(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0])
            raise RequestError(f"{field}: {first['msg']}", param=field) from None
        options = request.generation_options(self._engine)
        prompts = request.prompts(self._engine)
        pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        with self._lock:
            if self._closed:
                raise NotReady("the model is closed: load it again")
            generating = asyncio.run_coroutine_threadsafe(
                self._generate(prompts, options, pieces), self._loop
            )
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            generating.cancel()

    async def _generate(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        pieces: "queue.SimpleQueue[str | Exception | None]",
    ) -> None:
        """Put the text into `pieces`, an error as itself, and None behind the last."""
        try:
            generation = self._engine.submit(prompts, options)
            try:
                async for deltas in generation:
                    pieces.put("".join(delta.text for delta in deltas))
            finally:
                generation.cancel()
        except Exception as error:  # raised where the pieces are read
            pieces.put(error)
        finally:
            pieces.put(None)


async def _others_end() -> None:
    """Wait for all other tasks of this loop: with the engine closed they end at once."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
