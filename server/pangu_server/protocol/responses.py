"""The body of OpenAI's `POST /v1/responses`: a conversation in another form. Nothing is kept between two of them."""

import json
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pangu_server.engine import Engine
from pangu_server.errors import RequestError
from pangu_server.protocol.base import GenerationRequest, Integer
from pangu_server.protocol.chat import ChatRequest, Message
from pangu_server.protocol.lists import Listed
from pangu_server.protocol.structured import ResponseFormat

SHARED = frozenset(GenerationRequest.model_fields)  # fields that mean the same in a chat
AS_TEMPLATES_SAY = {"developer": "system"}  # roles: OpenAI's newer name


class InputPart(BaseModel):
    """A part of a content: what somebody else said, or an earlier answer."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(BaseModel):
    """A turn of the conversation; also an earlier answer's `output`, as it came."""

    type: Literal["message"] | None = None
    role: str
    content: str | Listed[InputPart]

    def plain(self) -> Message:
        """As a chat has it."""
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return Message(role=AS_TEMPLATES_SAY.get(self.role, self.role), content="".join(parts))


class TextSettings(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: ResponseFormat | None = None


class ResponsesRequest(GenerationRequest):
    """Body of `POST /v1/responses`."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "previous_response_id": (None, ""),
        "conversation": (None,),
        "tools": (None, []),
        "background": (None, False),
        "prompt": (None,),
        "top_logprobs": (None, 0),
    }
    instead: ClassVar[dict[str, str]] = {
        "previous_response_id": "no response is kept: send the whole conversation as `input`",
        "conversation": "none is kept: send the whole of it as `input`",
        "tools": "use /v1/chat/completions, which has them",
        "background": "the answer comes at once: leave it out",
        "prompt": "no templates are kept: send its text as `input`",
        "top_logprobs": "use /v1/chat/completions, which has them",
    }
    silent: ClassVar[tuple[str, ...]] = ("user", "store")  # no response is ever stored

    input: str | Listed[InputMessage] = Field(
        description="A text, or the turns of a conversation with their text"
    )
    instructions: str | None = Field(default=None, description="What comes first, as a system's message")
    max_output_tokens: Integer | None = Field(
        default=None, ge=-1, description="Default, and -1: what the context has room for"
    )
    text: TextSettings | None = None
    metadata: dict[str, str] | None = Field(default=None, description="Comes back with the answer")

    def chat(self, engine: Engine) -> ChatRequest:
        """The same as a chat.

        Raises:
            RequestError: a field that a response cannot have, or no message.
            ModelNotFound: the request names another model.
        """
        self._check(engine)
        engine.encoder.check_unicode(json.dumps(self.echoed(), ensure_ascii=False), "metadata or text")
        if (self.n or 1) > 1:
            raise RequestError("n: a response has one answer: ask again for another one", param="n")
        if self.return_token_ids:
            raise RequestError(
                "return_token_ids: a response has no place for them: use /v1/chat/completions",
                param="return_token_ids",
            )
        asked = self.text.format if self.text is not None else None
        if asked is not None and self.response_format is not None:
            raise RequestError(
                "text and response_format: only one form can be kept: leave one out", param="text"
            )
        fields = {name: getattr(self, name) for name in SHARED}
        fields["response_format"] = asked or self.response_format
        messages, most = self._messages(), self.max_output_tokens
        return ChatRequest.model_construct(**fields, messages=messages, max_completion_tokens=most)

    def echoed(self) -> dict[str, Any]:
        """Fields that come back as they are: `text` and `metadata`."""
        form = self.text.model_dump(by_alias=True, exclude_none=True) if self.text is not None else {}
        return {"text": {"format": {"type": "text"}} | form, "metadata": self.metadata or {}}

    def _messages(self) -> list[Message]:
        turns = [Message(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*turns, Message(role="user", content=self.input)]
        if not self.input:
            raise RequestError("input is an empty list: give at least one message", param="input")
        return turns + [one.plain() for one in self.input]
