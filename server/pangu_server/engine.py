"""What all backends share: text to tokens and back, stop strings, admission, cancellation, counting.

One `Completion` per prompt. The backend's thread calls it as its `Listener`; the web layer iterates over
it on the event loop. Knows no HTTP.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pangu_convert.artifact import Artifact
from pangu_server.backends import Backend, SamplingOptions, TokenLogprobs
from pangu_server.errors import (
    ContextLengthExceeded,
    GenerationFailed,
    NotReady,
    Overloaded,
    RequestError,
)
from pangu_server.metrics import Metrics
from pangu_server.text import Detokenizer, StopStrings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOptions:
    """What a request asks for."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a completion's text. The last one, and only it, has a finish reason."""

    text: str
    finish_reason: FinishReason | None = None


class Engine:
    """A served artifact. `load` gives it its backend; until then, and after `drain`, it refuses work."""

    def __init__(
        self,
        artifact: Artifact,
        tokenizer: "Tokenizer",
        metrics: Metrics,
        *,
        model_names: Sequence[str] = (),
        max_queued: int = 128,
    ) -> None:
        self.artifact = artifact
        self.model_names = (artifact.manifest.name, *model_names)
        self.tokenizer = tokenizer
        self.metrics = metrics
        self.backend: Backend | None = None
        self.draining = False
        self._max_queued = max_queued
        self._vocabulary_size = tokenizer.get_vocab_size()
        self._lock = threading.Lock()
        self._waiting = self._running = 0
        metrics.watch(running=lambda: self._running, waiting=lambda: self._waiting)

    @property
    def ready(self) -> bool:
        """Whether `submit` would take a request."""
        return self.backend is not None and not self.draining

    def load(self, backend: Backend) -> None:
        """Start serving with `backend`, which the engine closes in the end."""
        manifest = self.artifact.manifest
        weights = manifest.files[manifest.weight_files[0]]
        self.metrics.loaded(backend.info, quantization=manifest.quantization, artifact_sha256=weights.sha256)
        self.backend = backend

    def drain(self) -> None:
        """Refuse new requests; those that were taken go on."""
        self.draining = True

    def close(self) -> None:
        """Cancel what still runs and release the model."""
        self.draining = True
        if self.backend is not None:
            self.backend.close()

    def submit(self, prompt: str | Sequence[int], options: CompletionOptions) -> "Completion":
        """Queue a completion. Call it on the event loop that will read the result.

        Raises:
            RequestError: a prompt that is no text or holds unknown token ids.
            ContextLengthExceeded: prompt and `max_tokens` do not fit the context.
            NotReady, Overloaded: no model yet, shutting down, or the queue is full.
        """
        if self.backend is None:
            self.metrics.rejected("loading")
            raise NotReady("the model is still loading: try again in a moment")
        if self.draining:
            self.metrics.rejected("draining")
            raise NotReady("the server is shutting down: try another one")
        prompt_ids = self._tokenize(prompt)
        context_length = self.artifact.manifest.context_length
        if len(prompt_ids) + options.max_tokens > context_length:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context_length} tokens. However, you requested "
                f"{len(prompt_ids) + options.max_tokens} tokens ({len(prompt_ids)} in the prompt, "
                f"{options.max_tokens} for the completion): shorten the prompt or lower max_tokens.",
                param="prompt",
            )
        with self._lock:
            if self._waiting >= self._max_queued:
                self.metrics.rejected("queue_full")
                raise Overloaded(f"{self._waiting} requests are waiting already: try again in a moment")
            self._waiting += 1
        completion = Completion(self, prompt_ids, options)
        completion.ticket = self.backend.submit(
            prompt_ids,
            SamplingOptions(
                max_tokens=options.max_tokens,
                temperature=0.0 if options.top_p == 0 else options.temperature,
                top_p=options.top_p or 1.0,  # a nucleus of nothing but the best token: greedy
                end_token_ids=self.artifact.manifest.end_token_ids,
            ),
            completion,
        )
        return completion

    def count(self, *, waiting: int, running: int) -> None:
        """Adjust the number of waiting and running requests."""
        with self._lock:
            self._waiting += waiting
            self._running += running

    def _tokenize(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise RequestError(
                    "prompt holds half of a surrogate pair: send valid Unicode", param="prompt"
                ) from None
            prompt_ids = list(self.tokenizer.encode(prompt).ids)
        else:
            prompt_ids = list(prompt)
            for token_id in prompt_ids:
                if not 0 <= token_id < self._vocabulary_size:
                    raise RequestError(
                        f"prompt holds token id {token_id}; the vocabulary has 0 to {self._vocabulary_size - 1}",
                        param="prompt",
                    )
        # An empty prompt starts a document: after end-of-text, which checkpoints name last.
        return prompt_ids or [self.artifact.manifest.end_token_ids[-1]]


class Completion:
    """One prompt on its way through a backend.

    Iterate over it once to get its text; `cancel` it when nobody reads on. Listener methods run on the
    backend's thread, everything else on the event loop.
    """

    def __init__(self, engine: Engine, prompt_ids: Sequence[int], options: CompletionOptions) -> None:
        self.ticket: Any = None
        self.prompt_tokens = len(prompt_ids)
        self.completion_tokens = 0
        self._engine = engine
        self._end_token_ids = frozenset(engine.artifact.manifest.end_token_ids)
        self._detokenizer = Detokenizer(engine.tokenizer, prompt_ids)
        self._stops = StopStrings(options.stop)
        self._finish_reason: FinishReason = "length"
        self._cancelled = self._ended = False
        self._arrived_seconds = self._last_token_seconds = time.perf_counter()
        self._started = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Delta | Exception] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Pieces of text as they come.

        Raises:
            GenerationFailed: the backend did.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if event.finish_reason is not None:
                return

    def cancel(self) -> None:
        """Stop generating. No-op once it has ended."""
        self._cancelled = True
        if not self._ended and self._engine.backend is not None:
            self._engine.backend.cancel(self.ticket)

    # ------------------------------------------------------------------ on the backend's thread

    def on_start(self) -> None:
        """See `Listener`."""
        self._started = True
        self._engine.count(waiting=-1, running=+1)
        metrics = self._engine.metrics
        metrics.queue_time.observe(time.perf_counter() - self._arrived_seconds)
        metrics.prompt_tokens.inc(self.prompt_tokens)

    def on_prompt(self, logprobs: Sequence[TokenLogprobs | None]) -> None:
        """See `Listener`."""

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """See `Listener`."""
        now = time.perf_counter()
        metrics = self._engine.metrics
        latency = metrics.inter_token_latency if self.completion_tokens else metrics.time_to_first_token
        latency.observe(now - self._last_token_seconds)
        self._last_token_seconds = now
        self.completion_tokens += 1
        metrics.generation_tokens.inc()
        if token_id in self._end_token_ids:
            self._finish_reason = "stop"
            return True
        if text := self._stops.push(self._detokenizer.push(token_id)):
            self._publish(Delta(text=text))
        if self._stops.found:
            self._finish_reason = "stop"
        return self._stops.found

    def on_end(self, error: Exception | None) -> None:
        """See `Listener`."""
        self._ended = True
        metrics = self._engine.metrics
        self._engine.count(waiting=0 if self._started else -1, running=-1 if self._started else 0)
        if error is not None:
            metrics.ended("error")
            self._publish(
                GenerationFailed("the model failed on this request; the server's log has the cause")
            )
            return
        rest = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        if self._stops.found:
            self._finish_reason = "stop"
        elif self._cancelled and self._finish_reason == "length":
            self._finish_reason = "abort"
            metrics.cancelled("running" if self._started else "queued")
        metrics.ended(self._finish_reason)
        metrics.end_to_end.observe(time.perf_counter() - self._arrived_seconds)
        self._publish(Delta(text=rest, finish_reason=self._finish_reason))

    def _publish(self, event: Delta | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the reader
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
