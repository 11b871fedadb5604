"""What all backends share: admission, limits, the choices of a request, deadlines and cancelling.

Knows no HTTP. `Engine.submit` gives a `Generation`; the web layer iterates over it on the event loop.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pangu_convert.artifact import Artifact
from pangu_convert.infilling import FimOrder
from pangu_server.backends.seam import Backend, Constraint, SamplingOptions
from pangu_server.chat import ChatTemplate
from pangu_server.completion import Completion, Delta, Load
from pangu_server.cost import memory_bytes
from pangu_server.encoding import Encoder
from pangu_server.errors import ContextLengthExceeded, NotReady, Overloaded, RequestError
from pangu_server.fim import FillInMiddle
from pangu_server.grammar.compiling import Grammars
from pangu_server.limits import Limits
from pangu_server.metrics import Metrics
from pangu_server.text import TextOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer


ANY_NAME = "*"  # among the model's names: it answers to every one
# The requests in flight may take this many times the memory that one may.
BUDGETS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What a request asks for, for each of its prompts. `sampling` has no end tokens yet."""

    sampling: SamplingOptions
    n: int = 1
    best_of: int = 1  # this many completions, of which the n most probable are the answer
    fit: bool = False  # `max_tokens` is lowered to what the context has room for
    text: TextOptions = field(default_factory=TextOptions)
    stop_token_ids: tuple[int, ...] = ()  # they end a completion too
    ignore_eos: bool = False
    stream: bool = False
    decode_seconds: float = float("inf")  # after the first token; then the next line end is the last
    constraint: Constraint | None = None  # for all completions


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and its text when the answer is to begin with it."""

    ids: Sequence[int]
    echo: str | None = None


class Engine:
    """A served artifact. `load` gives it its backend; until then, and after `drain`, it refuses work."""

    def __init__(
        self,
        artifact: Artifact,
        tokenizer: "Tokenizer",
        metrics: Metrics,
        *,
        model_names: Sequence[str] = (),
        adapters: Sequence[str] = (),
        limits: Limits | None = None,
        fim_order: FimOrder | None = None,
    ) -> None:
        self.artifact, self.metrics, self.limits = artifact, metrics, limits or Limits()
        self.model_names = (artifact.manifest.name, *(name for name in model_names if name != ANY_NAME))
        self._any_name = ANY_NAME in model_names
        self.adapters = tuple(adapters)  # each is a model to a client
        self.encoder = Encoder(
            tokenizer, artifact.manifest.end_token_ids, context_length=artifact.manifest.context_length
        )
        self.fim = FillInMiddle.find(self.encoder, fim_order, metrics.prompts_cut.inc)
        self.chat = ChatTemplate.load(artifact.path)
        ends = artifact.manifest.end_token_ids
        self.grammars = Grammars(tokenizer, ends, lambda: self.vocabulary_size)
        self.backend: Backend | None = None
        self.draining = False
        self.load_count = Load()
        metrics.watch(running=lambda: self.load_count.running, waiting=lambda: self.load_count.waiting)

    def answers_to(self, name: str) -> bool:
        """Whether a request may call the model so: also by the name of the checkpoint it was made of."""
        names = (*self.model_names, *self.adapters, self.artifact.manifest.source.name)
        return self._any_name or name in names

    @property
    def ready(self) -> bool:
        """Whether `submit` would take a request."""
        return self.backend is not None and not self.draining

    @property
    def context_length(self) -> int:
        """Tokens of prompt and completion together."""
        return self.artifact.manifest.context_length

    @property
    def vocabulary_size(self) -> int:
        """Token ids that a request may name are below it: both the tokenizer and the model have them."""
        return self.encoder.vocabulary_size if self.backend is None else self.vocabulary_of(self.backend)

    def vocabulary_of(self, backend: Backend) -> int:
        """What `vocabulary_size` is with this backend."""
        rows = backend.info.vocabulary_size
        return self.encoder.vocabulary_size if rows is None else min(self.encoder.vocabulary_size, rows)

    def end_token_ids(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens that end what follows a prompt: also FIM tokens when that fills a hole."""
        ends = self.artifact.manifest.end_token_ids
        if self.fim is not None and self.fim.asked_in(prompt_ids):
            return (*ends, *self.fim.end_token_ids)
        return ends

    def load(self, backend: Backend) -> None:
        """Start serving with `backend`, which the engine closes in the end."""
        self.metrics.loaded(self.artifact.manifest, backend)
        self.backend = backend

    def drain(self) -> None:
        """Refuse new requests; those that were taken go on."""
        self.draining = True

    def close(self) -> None:
        """Cancel what still runs and release the model."""
        self.draining = True
        self.grammars.close()
        if self.chat is not None:
            self.chat.close()
        if self.backend is not None:
            self.backend.close()

    def submit(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> "Generation":
        """Queue the completions of a request. `loop` reads the result; by default the one that calls.

        Raises:
            RequestError: too many choices, too much memory, or a token that the model does not have.
            ContextLengthExceeded: a prompt and `max_tokens` do not fit the context.
            NotReady, Overloaded: no model yet, shutting down, or the queue is full.
        """
        if self.backend is None:
            self.metrics.rejected("loading")
            raise NotReady("the model is still loading: try again in a moment")
        if self.draining:
            self.metrics.rejected("draining")
            raise NotReady("the server is shutting down: try another one")
        choices = len(prompts) * options.best_of
        if choices > self.limits.max_choices:
            param = "n" if options.best_of > 1 else "prompt"
            raise RequestError(
                f"{param}: {choices} completions are asked for; this server makes up to "
                f"{self.limits.max_choices} a request: split it",
                param=param,
            )
        for prompt in prompts:
            most = options.sampling.max_tokens
            self._check_context(len(prompt.ids), min(most, 1) if options.fit else most)
            self._check_tokens(prompt.ids, "prompt")
        self._check_tokens(options.sampling.prediction, "prediction")
        held = self._memory(prompts, options)
        if self.load_count.waiting >= self.limits.max_queued:
            self.metrics.rejected("queue_full")
            raise Overloaded(f"{self.load_count.waiting} requests are waiting already: try again in a moment")
        if self.load_count.held_bytes + held > BUDGETS * self.limits.max_request_bytes:
            self.metrics.rejected("memory")
            raise Overloaded("other requests take the memory for this one: try again in a moment")
        return Generation(self, self.backend, prompts, options, held, loop or asyncio.get_running_loop())

    def _memory(self, prompts: Sequence[Prompt], options: GenerationOptions) -> int:
        """Bytes that the request may take; `RequestError` when that is too much for one."""
        lengths = [len(prompt.ids) for prompt in prompts]
        room = self.context_length - min(lengths, default=0)
        sampling = replace(options.sampling, max_tokens=min(options.sampling.max_tokens, room))
        held, most = memory_bytes(lengths, options.best_of, sampling), self.limits.max_request_bytes
        if held > most:
            raise RequestError(
                f"this request may take {held >> 20} MiB of memory; this server gives one up to {most >> 20} MiB "
                "(--max-request-memory): lower max_tokens, n or logprobs, or send fewer prompts at once"
            )
        return held

    def _check_tokens(self, ids: Sequence[int], param: str) -> None:
        """A tokenizer may have tokens that nobody has taught the model: it has no row for them to look up."""
        largest = max(ids, default=0)
        if largest >= self.vocabulary_size:
            raise RequestError(
                f"{param} holds the token {self.encoder.decode([largest])!r} (id {largest}), which the model does not "
                f"have; it has 0 to {self.vocabulary_size - 1}: leave that token out",
                param=param,
            )

    def _check_context(self, prompt_tokens: int, max_tokens: int) -> None:
        if prompt_tokens + max_tokens > self.context_length:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.context_length} tokens. However, you requested "
                f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the prompt, "
                f"{max_tokens} for the completion): shorten the prompt or lower max_tokens.",
                param="prompt",
            )


class Generation:
    """All completions of a request: `best_of` for each prompt, numbered prompt by prompt.

    Iterate over it once; `cancel` it in any case when done, or when nobody reads on.
    """

    def __init__(
        self,
        engine: Engine,
        backend: Backend,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        held_bytes: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.options = options
        self.prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self._backend, self._over = backend, False
        self._loop = loop
        self._load, self._held_bytes = engine.load_count, held_bytes
        self._load.hold(held_bytes)
        self._events: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        seed = options.sampling.seed
        self.completions = [
            Completion(
                index,
                prompt.ids,
                replace(
                    options.sampling,
                    max_tokens=min(options.sampling.max_tokens, engine.context_length - len(prompt.ids)),
                    end_token_ids=(
                        *(() if options.ignore_eos else engine.end_token_ids(prompt.ids)),
                        *options.stop_token_ids,
                    ),
                    constraint=options.constraint,
                    # Choices of one prompt differ, equal prompts of a request do not.
                    seed=None if seed is None else seed + index % options.best_of,
                ),
                text=options.text,
                decode_seconds=options.decode_seconds,
                echo=prompt.echo,
                stream=options.stream,
                encoder=engine.encoder,
                metrics=engine.metrics,
                load=engine.load_count,
                publish=self._publish,
            )
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(options.best_of))
        ]
        engine.load_count.add(waiting=len(self.completions), running=0)
        for completion in self.completions:
            completion.ticket = backend.submit(completion.prompt_ids, completion.sampling, completion)
        self._timer: asyncio.TimerHandle | None = None
        self._loop.call_soon_threadsafe(self._start_timer, engine.limits.max_request_seconds)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated up to now, end tokens included."""
        return sum(completion.completion_tokens for completion in self.completions)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were in the cache when the request came. Further choices of a prompt find its own."""
        return sum(one.ticket.cached_tokens for one in self.completions[:: self.options.best_of])

    @property
    def drafted_tokens(self) -> int:
        """Tokens that were guessed for it up to now."""
        return sum(completion.ticket.drafted for completion in self.completions)

    @property
    def accepted_tokens(self) -> int:
        """Of the guessed tokens those that became part of an answer."""
        return sum(completion.ticket.accepted for completion in self.completions)

    @property
    def ttft_seconds(self) -> float | None:
        """Arrival to the first token of any choice."""
        return _least(completion.timings.ttft_seconds for completion in self.completions)

    @property
    def queue_seconds(self) -> float | None:
        """Arrival to the start of the first choice."""
        return _least(completion.timings.queue_seconds for completion in self.completions)

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        """Pieces of the choices, all that have come since the last ones, until each choice has ended.

        Raises:
            GenerationFailed: the backend did.
            DeadlineExceeded: the time was over before a choice had any text.
        """
        unfinished = len(self.completions)
        while unfinished:
            events = [await self._events.get()]
            while not self._events.empty():
                events.append(self._events.get_nowait())
            deltas = [event for event in events if isinstance(event, Delta)]
            if deltas:
                yield deltas
            for event in events:
                if isinstance(event, Exception):
                    raise event
            unfinished -= sum(delta.finish_reason is not None for delta in deltas)

    def best(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Of whole completions in order the `n` of each prompt with the highest mean log-probability."""
        n, best_of = self.options.n, self.options.best_of
        if n == best_of:
            return list(deltas)

        def mean_logprob(delta: Delta) -> float:
            completion = self.completions[delta.index]
            return completion.logprob_sum / max(1, completion.completion_tokens)

        chosen = []
        for first in range(0, len(deltas), best_of):
            chosen += sorted(deltas[first : first + best_of], key=mean_logprob, reverse=True)[:n]
        return [replace(delta, index=index) for index, delta in enumerate(chosen)]

    def cancel(self) -> None:
        """Stop what has not ended. Frees the timer too."""
        self._load.hold(-self._held_bytes)
        self._held_bytes, self._over = 0, True
        if self._timer is not None:
            self._timer.cancel()
        for completion in self.completions:
            if not completion.ended:
                self._backend.cancel(completion.ticket)

    def _start_timer(self, seconds: float) -> None:
        if not self._over:
            self._timer = self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        for completion in self.completions:
            completion.expired = not completion.ended
        self.cancel()

    def _publish(self, event: Delta | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the reader
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def _least(seconds: Iterable[float | None]) -> float | None:
    return min((one for one in seconds if one is not None), default=None)
