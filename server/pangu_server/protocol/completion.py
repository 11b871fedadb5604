"""OpenAI's text completions: `POST /v1/completions`."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from pangu_server.completion import Delta, FinishReason, Token
from pangu_server.encoding import Encoder
from pangu_server.engine import Engine
from pangu_server.errors import RequestError
from pangu_server.generation import GenerationOptions, Prompt
from pangu_server.pieces import unique_names
from pangu_server.protocol.base import GenerationRequest, Integer, TokenIds, Usage
from pangu_server.protocol.lists import Listed, made_when_written

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def _not_false(value: Any) -> Any:
    """`logprobs: false` is chat's word for none."""
    return None if value is False else value


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    prompt: str | Listed[int] | Listed[str] | Listed[Listed[int]] = Field(
        description="Text or token ids, one prompt or a list of them"
    )
    suffix: str | None = Field(
        default=None,
        description="The text after the hole that is to be filled. An empty one: the hole is at the end, if the model "
        "has tokens for that",
    )
    max_tokens: Integer | None = Field(
        default=None,
        ge=-1,
        description="0 only looks at the prompt: see echo. -1: what the context has room for",
    )
    best_of: Integer | None = Field(default=None, ge=0)
    logprobs: Annotated[Integer | None, BeforeValidator(_not_false)] = Field(
        default=None, ge=0, description="Alternatives to report for each token"
    )
    echo: bool | None = Field(default=None, description="Begin the answer with the prompt")

    def generation_options(self, engine: Engine) -> GenerationOptions:
        """See `GenerationRequest.options`."""
        return self.options(
            engine,
            max_tokens=self._most(),
            best_of=self.best_of,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
        )

    def prompts(self, engine: Engine) -> list[Prompt]:
        """The prompts as token ids.

        Raises:
            RequestError: no prompt, no valid one, or a suffix where it cannot be.
            ContextLengthExceeded: there is no room around a hole.
        """
        listed = self._listed()
        if not listed:
            raise RequestError("prompt is an empty list: give at least one", param="prompt")
        prompts = [self._ids(prompt, engine) for prompt in listed]
        return [
            Prompt(ids, self._echoed(prompt, ids, engine.encoder))
            for prompt, ids in zip(listed, prompts, strict=True)
        ]

    def _most(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def _ids(self, prompt: str | list[int], engine: Engine) -> list[int]:
        """An empty suffix asks for a hole at the end where that can be; else it is none."""
        if self.suffix or (self.suffix == "" and engine.fim is not None and isinstance(prompt, str)):
            return self.around_hole(engine, prompt, self.suffix, self._most(), param="suffix")
        parse_special, add_special = self.parse_special is not False, self.add_special_tokens is not False
        ids = engine.encoder.prompt(prompt, parse_special=parse_special, add_special=add_special)
        return self.cut_prompt(ids, engine, self._most())

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
        exact = isinstance(prompt, str) and self.logprobs is None and self.truncate_prompt_tokens is None
        return prompt if exact else encoder.decode(ids)  # type: ignore[return-value]


class Logprobs(BaseModel):
    """Log-probabilities of a choice's tokens, one entry per token in each list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[Annotated[dict[str, float], made_when_written(dict[str, float])] | None]
    text_offset: list[int] = Field(description="Where each token begins, in characters of `text`")

    @classmethod
    def of(cls, tokens: Sequence[Token], encoder: Encoder) -> "Logprobs":
        """OpenAI's form of `tokens`."""
        entries = [token.logprobs for token in tokens]
        return cls.model_construct(  # nothing to check
            tokens=[encoder.token_text(token.id, first=token.first) for token in tokens],
            token_logprobs=[entry.logprob if entry else None for entry in entries],
            top_logprobs=[
                partial(_likeliest, token, encoder) if token.logprobs else None for token in tokens
            ],
            text_offset=[token.offset for token in tokens],
        )


def _likeliest(token: Token, encoder: Encoder) -> dict[str, float]:
    """Log-probabilities by text, the best first. The token itself is always among them, as with OpenAI."""
    assert token.logprobs is not None
    values = {token.id: token.logprobs.logprob, **dict(token.logprobs.top)}
    texts = [(token_id, encoder.token_text(token_id, first=token.first)) for token_id in values]
    named = zip(unique_names(texts), values.values(), strict=True)
    return dict(sorted(named, key=lambda pair: pair[1], reverse=True))


class Choice(BaseModel):
    """One completion, or a piece of one."""

    index: int = 0
    text: str
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=lambda ids: ids is None)
    token_ids: list[int] | None = Field(default=None, exclude_if=lambda ids: ids is None)


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

    def __init__(
        self,
        id: str,
        created: int,
        model: str,
        encoder: Encoder,
        *,
        logprobs: bool,
        token_ids: TokenIds | None = None,
    ) -> None:
        self._head = CompletionResponse(id=f"cmpl-{id}", created=created, model=model, choices=[])
        self._encoder, self._logprobs, self._token_ids = encoder, logprobs, token_ids

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
            prompt_token_ids=self._token_ids.of_prompt(delta.index) if self._token_ids else None,
            token_ids=list(delta.token_ids) if self._token_ids else None,
        )
