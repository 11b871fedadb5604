"""How chat completions, and Mistral's fill-in-the-middle completions, are answered."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from pangu_server.completion import Delta, FinishReason, Token
from pangu_server.encoding import Encoder
from pangu_server.pieces import written
from pangu_server.protocol.base import TokenIds, Usage
from pangu_server.protocol.lists import made_when_written
from pangu_server.protocol.tools import ToolCallMessage
from pangu_server.tool_calls import ToolCall, ToolCallReader


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

    content: list[Annotated[TokenLogprob, made_when_written(TokenLogprob)]]

    @classmethod
    def of(cls, tokens: Sequence[Token], encoder: Encoder) -> "ChatLogprobs":
        """OpenAI's form of `tokens`."""
        return cls.model_construct(content=[partial(_entry, token, encoder) for token in tokens])


def _entry(token: Token, encoder: Encoder) -> TokenLogprob:
    assert token.logprobs is not None  # only a prompt's first token has none
    top = [_top(encoder, id, value, first=token.first) for id, value in token.logprobs.top]
    own = _top(encoder, token.id, token.logprobs.logprob, first=token.first)
    return TokenLogprob(**own.model_dump(), top_logprobs=top)


def _top(encoder: Encoder, token_id: int, logprob: float, *, first: bool) -> TopLogprob:
    raw = encoder.pieces.of(token_id, first=first)
    return TopLogprob(token=written(raw), logprob=logprob, bytes=list(raw))


ChatFinishReason = FinishReason | Literal["tool_calls"]


class AssistantMessage(BaseModel):
    """The answer. No content where it is tool calls and nothing else."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[ToolCallMessage] | None = Field(default=None, exclude_if=lambda calls: not calls)


class AssistantDelta(BaseModel):
    """A piece of the answer."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=lambda role: role is None)
    content: str | None = Field(default=None, exclude_if=lambda content: content is None)
    tool_calls: list[ToolCallMessage] | None = Field(default=None, exclude_if=lambda calls: not calls)


class ChatChoice(BaseModel):
    """One whole answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    token_ids: list[int] | None = Field(default=None, exclude_if=lambda ids: ids is None)


class ChatChunkChoice(BaseModel):
    """A piece of an answer."""

    index: int
    delta: AssistantDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    token_ids: list[int] | None = Field(default=None, exclude_if=lambda ids: ids is None)


class ChatResponse(BaseModel):
    """Response of `POST /v1/chat/completions` and `/v1/fim/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=lambda ids: ids is None)


class ChatChunk(BaseModel):
    """An event of their streams."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(default=None, exclude_if=lambda usage: usage is None)
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=lambda ids: ids is None)


class ChatForm:
    """Writes deltas as chat completions; with `calls` it looks for tool calls in them, of which `most_calls` count."""

    def __init__(
        self,
        id: str,
        created: int,
        model: str,
        encoder: Encoder,
        *,
        logprobs: bool,
        token_ids: TokenIds | None = None,
        calls: bool = False,
        most_calls: int | None = None,
    ) -> None:
        self._head: dict[str, Any] = {"id": f"chatcmpl-{id}", "created": created, "model": model}
        self._encoder, self._logprobs, self._token_ids = encoder, logprobs, token_ids
        self._calls, self._most_calls = calls, most_calls
        self._readers: dict[int, ToolCallReader] = {}
        self._begun: set[int] = set()

    def body(self, deltas: Sequence[Delta], usage: Usage | None) -> ChatResponse:
        """A whole answer."""
        choices = [self._choice(delta) for delta in deltas]
        return ChatResponse(**self._head, choices=choices, usage=usage, prompt_token_ids=self._prompt_ids())

    def chunk(self, deltas: Sequence[Delta], usage: Usage | None) -> list[ChatChunk]:
        """Events: none while a delta may be part of a tool call, several for a whole one."""
        if not deltas:
            return [ChatChunk(**self._head, choices=[], usage=usage)]
        choices = [choice for delta in deltas for choice in self._chunk_choices(delta)]
        return [
            ChatChunk(**self._head, choices=[choice], usage=usage, prompt_token_ids=self._prompt_ids())
            for choice in choices
        ]

    def _choice(self, delta: Delta) -> ChatChoice:
        pieces = self._pieces(delta)
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [ToolCallMessage.of(piece) for piece in pieces if isinstance(piece, ToolCall)]
        return ChatChoice(
            index=delta.index,
            message=AssistantMessage(content=content or (None if calls else ""), tool_calls=calls),
            logprobs=self._logprobs_of(delta),
            finish_reason=self._finish_reason(delta),
            token_ids=self._ids_of(delta),
        )

    def _chunk_choices(self, delta: Delta) -> list[ChatChunkChoice]:
        """The first of each choice says who speaks, the last one why it ends."""
        reader = self._reader(delta.index)
        place = reader.calls
        messages: list[AssistantDelta] = []
        for piece in self._pieces(delta):
            if isinstance(piece, str):
                messages.append(AssistantDelta(content=piece))
            else:
                calls = ToolCallMessage.of(piece).pieces(place)
                messages += [AssistantDelta(tool_calls=[call]) for call in calls]
                place += 1
        told = delta.tokens or delta.finish_reason or (self._token_ids and delta.token_ids)
        if (not messages and told) or (delta.finish_reason and place > 0):
            messages.append(AssistantDelta(content=""))
        choices = [ChatChunkChoice(index=delta.index, delta=message) for message in messages]
        if choices:
            choices[0].logprobs = self._logprobs_of(delta)
            choices[0].token_ids = self._ids_of(delta)
            choices[-1].finish_reason = self._finish_reason(delta)
            if delta.index not in self._begun:
                choices[0].delta.role = "assistant"
                self._begun.add(delta.index)
        return choices

    def _reader(self, index: int) -> ToolCallReader:
        return self._readers.setdefault(index, ToolCallReader(self._most_calls))

    def _pieces(self, delta: Delta) -> list[str | ToolCall]:
        if not self._calls:
            return [delta.text] if delta.text else []
        reader = self._reader(delta.index)
        pieces = reader.push(delta.text)
        if delta.finish_reason is not None:
            pieces += reader.flush()
        return pieces

    def _finish_reason(self, delta: Delta) -> ChatFinishReason | None:
        called = self._reader(delta.index).calls > 0
        return "tool_calls" if called and delta.finish_reason == "stop" else delta.finish_reason

    def _prompt_ids(self) -> list[int] | None:
        return self._token_ids.of_prompt(0) if self._token_ids else None

    def _ids_of(self, delta: Delta) -> list[int] | None:
        return list(delta.token_ids) if self._token_ids else None

    def _logprobs_of(self, delta: Delta) -> ChatLogprobs | None:
        return ChatLogprobs.of(delta.tokens, self._encoder) if self._logprobs else None
