"""The bodies of OpenAI's chat completions, and of Mistral's fill-in-the-middle completions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pangu_server.chat import NO_TEMPLATE
from pangu_server.engine import Engine
from pangu_server.errors import RequestError
from pangu_server.generation import GenerationOptions, Prompt
from pangu_server.protocol.base import GenerationRequest, Integer, TextPart, text_of
from pangu_server.protocol.lists import Listed
from pangu_server.protocol.tools import offered, with_arguments

DEFAULT_FIM_TOKENS = 128
OWN_VARIABLES = {
    *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("chat_template", "tokenize"),
}


class Message(BaseModel):
    """A turn of the conversation."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | Listed[TextPart] | None = None

    def plain(self) -> dict[str, Any]:
        """As templates take it, with every field that came; raises `RequestError` for tool calls of no known form."""
        fields: dict[str, Any] = {"role": self.role, **(self.model_extra or {})}
        if self.content is not None:
            fields["content"] = text_of(self.content)
        if fields.get("tool_calls") is not None:
            fields["tool_calls"] = with_arguments(fields["tool_calls"])
        return fields


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "chat_template": (None,),
    }

    messages: Listed[Message] = Field(min_length=1)
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: Any = Field(default=None, description="none or auto")
    parallel_tool_calls: bool | None = Field(
        default=None, description="False: of an answer's calls only the first is given"
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="Whether the prompt ends where an assistant begins to speak. Default: yes"
    )
    continue_final_message: bool | None = Field(
        default=None, description="Go on with the last message, whose end the prompt leaves open"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the chat template, such as enable_thinking"
    )
    documents: Listed[dict[str, Any]] | None = Field(default=None, description="For templates that take them")
    max_tokens: Integer | None = Field(
        default=None, ge=-1, description="Default, and -1: what the context has room for"
    )
    max_completion_tokens: Integer | None = Field(
        default=None, ge=-1, description="The same, by its newer name"
    )
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0)

    @property
    def calls(self) -> bool:
        """Whether tool calls are to be looked for in the answer."""
        return offered(self.tools, self.tool_choice) is not None

    def text(self, engine: Engine) -> str:
        """The conversation by the model's chat template, with marks of the encoder. Blocks while it is rendered.

        Raises:
            RequestError: there is no template, it refuses the messages, or fields contradict each other.
        """
        if engine.chat is None:
            raise RequestError(f"messages: {NO_TEMPLATE}", param="messages")
        conversation = {
            "messages": [message.plain() for message in self.messages],
            "tools": offered(self.tools, self.tool_choice),
            "documents": self.documents,
            **self._ending(),
            "variables": self._variables(),
        }
        return engine.chat.text(conversation, engine.encoder, parse_special=bool(self.parse_special))

    def prompt(self, text: str, engine: Engine) -> Prompt:
        """The ids of what `text` gave."""
        start = engine.encoder.start_ids if self.add_special_tokens else []
        return Prompt(self.cut_prompt([*start, *engine.encoder.guarded_text(text)], engine, self._most()))

    def _ending(self) -> dict[str, bool]:
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message goes on with the last message, add_generation_prompt begins a new one: "
                "only one of them can be true",
                param="continue_final_message",
            )
        goes_on = bool(self.continue_final_message)
        return {
            "continue_final_message": goes_on,
            "add_generation_prompt": not goes_on and self.add_generation_prompt is not False,
        }

    def _variables(self) -> Mapping[str, Any]:
        variables = self.chat_template_kwargs or {}
        if own := sorted(variables.keys() & OWN_VARIABLES):
            raise RequestError(
                f"chat_template_kwargs: {own[0]} is not the template's to give: use the field of the request",
                param="chat_template_kwargs",
            )
        return variables

    def generation_options(self, engine: Engine, prompt_tokens: int) -> GenerationOptions:
        """See `GenerationRequest.options`."""
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        room = max(1, engine.context_length - prompt_tokens)
        asked = self._most()
        return self.options(
            engine,
            max_tokens=room if asked < 0 else asked,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def _most(self) -> int:
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return -1 if asked is None else asked


class FimRequest(GenerationRequest):
    """Body of `POST /v1/fim/completions`."""

    prompt: str = Field(description="The code before the hole")
    suffix: str | None = Field(default=None, description="The code after the hole")
    max_tokens: Integer | None = Field(default=None, ge=-1, description="-1: what the context has room for")

    def generation(self, engine: Engine) -> tuple[Prompt, GenerationOptions]:
        """The prompt around the hole and how to fill it.

        Raises:
            RequestError: the model has no FIM tokens, or see `GenerationRequest.options`.
        """
        max_tokens = DEFAULT_FIM_TOKENS if self.max_tokens is None else self.max_tokens
        ids = self.around_hole(engine, self.prompt, self.suffix or "", max_tokens, param="prompt")
        return Prompt(ids), self.options(engine, max_tokens=max_tokens)
