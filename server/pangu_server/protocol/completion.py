"""OpenAI's text completions: `POST /v1/completions`."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from pangu_server.backends.seam import TokenLogprobs
from pangu_server.completion import Delta, FinishReason, Token
from pangu_server.encoding import Encoder
from pangu_server.engine import Engine, GenerationOptions, Prompt
from pangu_server.errors import RequestError
from pangu_server.protocol.base import GenerationRequest, Integer, Usage
from pangu_server.protocol.lists import Listed, made_when_written

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    prompt: str | Listed[int] | Listed[str] | Listed[Listed[int]] = Field(
        description="Text or token ids, one prompt or a list of them"
    )
    suffix: str | None = Field(default=None, description="The text after the hole that is to be filled")
    max_tokens: Integer | None = Field(default=None, ge=0, description="0 only looks at the prompt: see echo")
    best_of: Integer | None = Field(default=None, ge=0)
    logprobs: Integer | None = Field(default=None, ge=0, description="Alternatives to report for each token")
    echo: bool | None = Field(default=None, description="Begin the answer with the prompt")

    def generation_options(self, engine: Engine) -> GenerationOptions:
        """See `GenerationRequest.options`."""
        return self.options(
            engine,
            max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            best_of=self.best_of,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
        )

    def prompts(self, engine: Engine, max_tokens: int) -> list[Prompt]:
        """The prompts as token ids.

        Raises:
            RequestError: no prompt, no valid one, or a suffix where it cannot be.
            ContextLengthExceeded: there is no room around a hole.
        """
        listed = self._listed()
        if not listed:
            raise RequestError("prompt is an empty list: give at least one", param="prompt")
        if self.suffix:
            return [self._around_hole(prompt, self.suffix, engine, max_tokens) for prompt in listed]
        encoder, parse_special = engine.encoder, self.parse_special is not False
        encoded = [encoder.prompt(prompt, parse_special=parse_special) for prompt in listed]
        return [
            Prompt(ids, self._echoed(prompt, ids, encoder))
            for prompt, ids in zip(listed, encoded, strict=True)
        ]

    def _listed(self) -> Sequence[str | list[int]]:
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [prompt]
        return prompt  # type: ignore[return-value]

    def _echoed(self, prompt: str | list[int], ids: list[int], encoder: Encoder) -> str | None:
        if not self.echo:
            return None
        # With log-probabilities text and tokens must match, so the text is the tokens' own: around a hole all
        # that the model got.
        exact = isinstance(prompt, str) and self.logprobs is None
        return prompt if exact else encoder.decode(ids)  # type: ignore[return-value]

    def _around_hole(self, prompt: str | list[int], suffix: str, engine: Engine, max_tokens: int) -> Prompt:
        ids = self.around_hole(engine, prompt, suffix, max_tokens, param="suffix")
        return Prompt(ids, self._echoed(prompt, ids, engine.encoder))


class Logprobs(BaseModel):
    """Log-probabilities of a choice's tokens, one entry per token in each list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[Annotated[dict[str, float], made_when_written(dict[str, float])] | None]
    text_offset: list[int] = Field(description="Where each token begins, in characters of `text`")

    @classmethod
    def of(cls, tokens: Sequence[Token], encoder: Encoder) -> "Logprobs":
        """OpenAI's form of `tokens`."""
        text = encoder.token_text
        entries = [token.logprobs for token in tokens]
        return cls.model_construct(  # nothing to check
            tokens=[text(token.id) for token in tokens],
            token_logprobs=[entry.logprob if entry else None for entry in entries],
            top_logprobs=[
                partial(_alternatives, token.id, entry, encoder) if entry else None
                for token, entry in zip(tokens, entries, strict=True)
            ],
            text_offset=[token.offset for token in tokens],
        )


def _alternatives(token_id: int, entry: TokenLogprobs, encoder: Encoder) -> dict[str, float]:
    """The token itself is always among them, as with OpenAI."""
    return {encoder.token_text(id): value for id, value in (*entry.top, (token_id, entry.logprob))}


class Choice(BaseModel):
    """One completion, or a piece of one."""

    index: int = 0
    text: str
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionResponse(BaseModel):
    """Response of `POST /v1/completions`, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = Field(default=None, exclude_if=lambda usage: usage is None)


class CompletionForm:
    """Writes deltas as text completions."""

    def __init__(self, id: str, created: int, model: str, encoder: Encoder, *, logprobs: bool) -> None:
        self._head = CompletionResponse(id=f"cmpl-{id}", created=created, model=model, choices=[])
        self._encoder, self._logprobs = encoder, logprobs

    def body(self, deltas: Sequence[Delta], usage: Usage | None) -> CompletionResponse:
        """A whole answer, or a chunk of one."""
        return self._head.model_copy(update={"choices": [self._choice(d) for d in deltas], "usage": usage})

    chunk = body

    def _choice(self, delta: Delta) -> Choice:
        return Choice(
            index=delta.index,
            text=delta.text,
            logprobs=Logprobs.of(delta.tokens, self._encoder) if self._logprobs else None,
            finish_reason=delta.finish_reason,
        )
