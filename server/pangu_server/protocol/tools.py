"""OpenAI's tools: what a request says of them, and how calls are written in an answer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field

from pangu_server.errors import RequestError
from pangu_server.tool_calls import ToolCall


class CalledFunction(BaseModel):
    """What is called. In a stream the name comes first, then the arguments."""

    name: str | None = Field(default=None, exclude_if=lambda name: name is None)
    arguments: str


class ToolCallMessage(BaseModel):
    """A call in an answer, or in a stream a piece of one: the first has the id, the type and the name."""

    index: int | None = Field(default=None, exclude_if=lambda index: index is None)
    id: str | None = Field(default=None, exclude_if=lambda id: id is None)
    type: Literal["function"] | None = Field(default=None, exclude_if=lambda type: type is None)
    function: CalledFunction

    @classmethod
    def of(cls, call: ToolCall) -> "ToolCallMessage":
        """A whole one."""
        function = CalledFunction(name=call.name, arguments=call.arguments)
        return cls(id=f"call_{uuid4().hex}", type="function", function=function)

    def pieces(self, index: int) -> "tuple[ToolCallMessage, ToolCallMessage]":
        """As a stream has it."""
        function = self.function.model_copy(update={"arguments": ""})
        return (
            self.model_copy(update={"index": index, "function": function}),
            ToolCallMessage(index=index, function=CalledFunction(arguments=self.function.arguments)),
        )


def offered(tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> list[Mapping[str, Any]] | None:
    """The tools that the model is to see: none if there are none, or it may not call one.

    Raises:
        RequestError: one is not a function with a name, or the choice cannot be enforced.
    """
    for tool in tools or ():
        function = tool.get("function")
        named = isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]
        if tool.get("type") != "function" or not named:
            raise RequestError('tools: each is {"type": "function", "function": {"name": …}}', param="tools")
    if choice not in (None, "none", "auto"):
        raise RequestError(
            "tool_choice: nothing makes the model call a tool, or a certain one; this server knows none and auto",
            param="tool_choice",
        )
    return list(tools) if tools and choice != "none" else None


def with_arguments(calls: Any) -> list[Any]:
    """An assistant's `tool_calls` as templates take them: the arguments are an object, not its text.

    Raises:
        RequestError: they have another form.
    """
    try:
        return [{**call, "function": _with_object(call["function"])} for call in calls]
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        raise RequestError(
            'messages: tool_calls are a list of {"id", "type", "function": {"name", "arguments": "a JSON object"}}',
            param="messages",
        ) from None


def _with_object(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise TypeError
    return {**function, "arguments": arguments}
