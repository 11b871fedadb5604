"""How `/v1/responses` is answered: a response with one message of one text, and the events that it is streamed in."""

import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from pangu_server.completion import Delta
from pangu_server.generation import Generation
from pangu_server.protocol.base import PromptTokensDetails, Usage
from pangu_server.protocol.events import NamedEvent
from pangu_server.protocol.responses import ResponsesRequest

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[str] = Field(default=[], description="Always empty, as the next one")
    logprobs: list[str] = []


class OutputMessage(BaseModel):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputText]


class InputTokensDetails(PromptTokensDetails):
    """Of the prompt's tokens."""

    cache_write_tokens: int = Field(
        default=0, description="Always 0: those that go into the cache cost nothing"
    )


class OutputTokensDetails(BaseModel):
    """Of the answer's tokens. Thoughts that a model writes are part of its text."""

    reasoning_tokens: int = 0


class ResponsesUsage(BaseModel):
    """Token counts, by the names of this endpoint."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "ResponsesUsage":
        """The same counts."""
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )


class IncompleteDetails(BaseModel):
    """Why an answer is cut."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponsesResponse(BaseModel):
    """Response of `POST /v1/responses`. What was asked for comes back with it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["auto"] = "auto"
    tools: list[str] = Field(default=[], description="Always empty")
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponsesUsage | None = None


class ResponseEvent(NamedEvent):
    """What became of the response."""

    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    sequence_number: int
    response: ResponsesResponse


class ItemEvent(NamedEvent):
    """What became of its message."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int = 0
    item: OutputMessage


class TextEvent(NamedEvent):
    """What became of the message's text: its part, or a piece of it, or all of it."""

    type: Literal[
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
    ]
    sequence_number: int
    item_id: str
    output_index: int = 0
    content_index: int = 0
    part: OutputText | None = Field(default=None, exclude_if=lambda part: part is None)
    delta: str | None = Field(default=None, exclude_if=lambda delta: delta is None)
    text: str | None = Field(default=None, exclude_if=lambda text: text is None)
    logprobs: list[str] | None = Field(default=None, exclude_if=lambda logprobs: logprobs is None)


class ResponsesForm:
    """Writes the deltas of one completion as a response."""

    def __init__(
        self, id: str, created: int, model: str, body: ResponsesRequest, generation: Generation
    ) -> None:
        self._item_id, self._generation = f"msg_{id}", generation
        sampling = generation.options.sampling
        self._head = ResponsesResponse(
            id=f"resp_{id}",
            created_at=created,
            status="in_progress",
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=model,
            output=[],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            **body.echoed(),
        )
        self._pieces: list[str] = []
        self._told = 0

    def body(self, deltas: Sequence[Delta], usage: Usage | None) -> ResponsesResponse:
        """A whole answer."""
        [delta] = deltas
        return self._ended(delta.text, delta)

    def chunk(self, deltas: Sequence[Delta], usage: Usage | None) -> list[NamedEvent]:
        """Events: with the first delta those that begin, with the last one those that end."""
        [delta] = deltas
        events = [] if self._told else self._beginning()
        if delta.text:
            self._pieces.append(delta.text)
            events.append(self._text("response.output_text.delta", delta=delta.text, logprobs=[]))
        if delta.finish_reason is not None:
            events += self._ending(delta)
        return events

    def _beginning(self) -> list[NamedEvent]:
        message = OutputMessage(id=self._item_id, status="in_progress", content=[])
        return [
            self._of_response("response.created", self._head),
            self._of_response("response.in_progress", self._head),
            ItemEvent(type="response.output_item.added", sequence_number=self._next(), item=message),
            self._text("response.content_part.added", part=OutputText(text="")),
        ]

    def _ending(self, delta: Delta) -> list[NamedEvent]:
        text = "".join(self._pieces)
        whole = self._ended(text, delta)
        [message] = whole.output
        ended: Any = f"response.{whole.status}"
        return [
            self._text("response.output_text.done", text=text, logprobs=[]),
            self._text("response.content_part.done", part=message.content[0]),
            ItemEvent(type="response.output_item.done", sequence_number=self._next(), item=message),
            self._of_response(ended, whole),
        ]

    def _ended(self, text: str, delta: Delta) -> ResponsesResponse:
        cut = delta.finish_reason == "length"
        status: Status = "incomplete" if cut else "completed"
        message = OutputMessage(id=self._item_id, status=status, content=[OutputText(text=text)])
        return self._head.model_copy(
            update={
                "status": status,
                "completed_at": None if cut else int(time.time()),
                "incomplete_details": IncompleteDetails() if cut else None,
                "output": [message],
                "usage": ResponsesUsage.of(Usage.of(self._generation)),
            }
        )

    def _of_response(self, type: Any, response: ResponsesResponse) -> NamedEvent:
        return ResponseEvent(type=type, sequence_number=self._next(), response=response)

    def _text(self, type: Any, **fields: Any) -> NamedEvent:
        return TextEvent(type=type, sequence_number=self._next(), item_id=self._item_id, **fields)

    def _next(self) -> int:
        self._told += 1
        return self._told - 1
