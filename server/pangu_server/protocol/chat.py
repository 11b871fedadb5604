"""OpenAI's chat completions, and Mistral's fill-in-the-middle completions, which answer in the same form."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pangu_server.chat import NO_TEMPLATE
from pangu_server.completion import Delta, FinishReason, Token
from pangu_server.encoding import Encoder
from pangu_server.engine import Engine, GenerationOptions, Prompt
from pangu_server.errors import RequestError
from pangu_server.protocol.base import GenerationRequest, Integer, TextPart, Usage, text_of

DEFAULT_FIM_TOKENS = 128


class Message(BaseModel):
    """A turn of the conversation."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[TextPart] | None = None

    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        return {"role": self.role, "content": text_of(self.content or "")}


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": (None, []),
        "functions": (None, []),
        "modalities": (None, ["text"]),
        "audio": (None,),
    }

    messages: list[Message] = Field(min_length=1)
    max_tokens: Integer | None = Field(
        default=None, ge=0, description="Default: what the context has room for"
    )
    max_completion_tokens: Integer | None = Field(
        default=None, ge=0, description="The same, by its newer name"
    )
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0)

    def prompt(self, engine: Engine) -> Prompt:
        """The conversation by the model's chat template.

        Raises:
            RequestError: it has none, or the template refuses the messages.
        """
        if engine.chat is None:
            raise RequestError(f"messages: {NO_TEMPLATE}", param="messages")
        messages = [message.plain() for message in self.messages]
        for message in messages:
            engine.encoder.check_unicode(message["role"] + message["content"], "messages")
        return Prompt(engine.chat.prompt(messages, engine.encoder, parse_special=bool(self.parse_special)))

    def generation_options(self, engine: Engine, prompt_tokens: int) -> GenerationOptions:
        """See `GenerationRequest.options`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        room = max(1, engine.context_length - prompt_tokens)
        return self.options(
            engine,
            max_tokens=room if asked is None else asked,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class FimRequest(GenerationRequest):
    """Body of `POST /v1/fim/completions`."""

    prompt: str = Field(description="The code before the hole")
    suffix: str | None = Field(default=None, description="The code after the hole")
    max_tokens: Integer | None = Field(default=None, ge=0)

    def generation(self, engine: Engine) -> tuple[Prompt, GenerationOptions]:
        """The prompt around the hole and how to fill it.

        Raises:
            RequestError: the model has no FIM tokens, or see `GenerationRequest.options`.
        """
        max_tokens = DEFAULT_FIM_TOKENS if self.max_tokens is None else self.max_tokens
        ids = self.around_hole(engine, self.prompt, self.suffix or "", max_tokens, param="prompt")
        return Prompt(ids), self.options(engine, max_tokens=max_tokens)


class TopLogprob(BaseModel):
    """A token that could have been here."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token that is here."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a choice's tokens."""

    content: list[TokenLogprob]

    @classmethod
    def of(cls, tokens: Sequence[Token], encoder: Encoder) -> "ChatLogprobs":
        """OpenAI's form of `tokens`."""
        content = []
        for token in tokens:
            assert token.logprobs is not None  # only a prompt's first token has none
            top = [_top(encoder, id, value) for id, value in token.logprobs.top]
            content.append(
                TokenLogprob(**_top(encoder, token.id, token.logprobs.logprob).model_dump(), top_logprobs=top)
            )
        return cls(content=content)


def _top(encoder: Encoder, token_id: int, logprob: float) -> TopLogprob:
    text = encoder.token_text(token_id)
    raw = encoder.token_bytes(token_id)
    return TopLogprob(token=text, logprob=logprob, bytes=None if raw is None else list(raw))


class AssistantMessage(BaseModel):
    """The answer, or a piece of it."""

    role: Literal["assistant"] | None = Field(default="assistant", exclude_if=lambda role: role is None)
    content: str


class ChatChoice(BaseModel):
    """One whole answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunkChoice(BaseModel):
    """A piece of an answer."""

    index: int
    delta: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatResponse(BaseModel):
    """Response of `POST /v1/chat/completions` and `/v1/fim/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatChunk(BaseModel):
    """An event of their streams."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(default=None, exclude_if=lambda usage: usage is None)


class ChatForm:
    """Writes deltas as chat completions."""

    def __init__(self, id: str, created: int, model: str, encoder: Encoder, *, logprobs: bool) -> None:
        self._head = {"id": f"chatcmpl-{id}", "created": created, "model": model}
        self._encoder, self._logprobs = encoder, logprobs
        self._begun: set[int] = set()

    def body(self, deltas: Sequence[Delta], usage: Usage | None) -> ChatResponse:
        """A whole answer."""
        choices = [
            ChatChoice(
                index=delta.index,
                message=AssistantMessage(content=delta.text),
                logprobs=self._logprobs_of(delta),
                finish_reason=delta.finish_reason,
            )
            for delta in deltas
        ]
        return ChatResponse(**self._head, choices=choices, usage=usage)  # type: ignore[arg-type]

    def chunk(self, deltas: Sequence[Delta], usage: Usage | None) -> ChatChunk:
        """An event. The first of each choice says who speaks."""
        choices = []
        for delta in deltas:
            role: Literal["assistant"] | None = None if delta.index in self._begun else "assistant"
            self._begun.add(delta.index)
            choices.append(
                ChatChunkChoice(
                    index=delta.index,
                    delta=AssistantMessage(role=role, content=delta.text),
                    logprobs=self._logprobs_of(delta),
                    finish_reason=delta.finish_reason,
                )
            )
        return ChatChunk(**self._head, choices=choices, usage=usage)  # type: ignore[arg-type]

    def _logprobs_of(self, delta: Delta) -> ChatLogprobs | None:
        return ChatLogprobs.of(delta.tokens, self._encoder) if self._logprobs else None
