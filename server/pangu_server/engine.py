"""What all backends share: what is served, who is admitted, and within which limits.

Knows no HTTP. `Engine.submit` gives a `Generation`; the web layer iterates over it on the event loop.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pangu_convert.artifact import Artifact
from pangu_convert.infilling import FimOrder
from pangu_server.backends.seam import Backend
from pangu_server.chat import ChatTemplate
from pangu_server.completion import Completion, Load, Publish
from pangu_server.cost import memory_bytes
from pangu_server.encoding import Encoder
from pangu_server.errors import ContextLengthExceeded, NotReady, Overloaded, RequestError
from pangu_server.fim import FillInMiddle
from pangu_server.generation import Generation, GenerationOptions, Prompt
from pangu_server.grammar.compiling import Grammars
from pangu_server.limits import Limits
from pangu_server.metrics import Metrics

if TYPE_CHECKING:
    from tokenizers import Tokenizer


ANY_NAME = "*"  # among the model's names: it answers to every one
# The requests in flight may take this many times the memory that one may.
BUDGETS = 4


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
    ) -> Generation:
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
        return Generation(
            self.backend,
            options,
            loop or asyncio.get_running_loop(),
            partial(self._completions, prompts, options),
            load=self.load_count,
            held_bytes=held,
            seconds=self.limits.max_request_seconds,
        )

    def _completions(
        self, prompts: Sequence[Prompt], options: GenerationOptions, publish: Publish
    ) -> list[Completion]:
        """`best_of` of each prompt, prompt by prompt."""
        seed = options.sampling.seed
        return [
            Completion(
                index,
                prompt.ids,
                replace(
                    options.sampling,
                    max_tokens=min(options.sampling.max_tokens, self.context_length - len(prompt.ids)),
                    end_token_ids=(
                        *(() if options.ignore_eos else self.end_token_ids(prompt.ids)),
                        *options.stop_token_ids,
                    ),
                    # Choices of one prompt differ, equal prompts of a request do not.
                    seed=None if seed is None else seed + index % options.best_of,
                ),
                text=options.text,
                decode_seconds=options.decode_seconds,
                echo=prompt.echo,
                stream=options.stream,
                encoder=self.encoder,
                metrics=self.metrics,
                load=self.load_count,
                publish=publish,
            )
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(options.best_of))
        ]

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
