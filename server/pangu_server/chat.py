"""The artifact's chat template: from messages to a prompt. Rendered as transformers renders it, in other processes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pangu_convert.artifact import ArtifactError
from pangu_convert.chat_template import ChatTemplates, UnusableTemplate, read_chat_templates
from pangu_server.encoding import Encoder
from pangu_server.errors import NotReady, RequestError
from pangu_server.rendering import Renderers, RenderingFailed

NO_TEMPLATE = "this model has no chat template: use /v1/completions"


class ChatTemplate:
    """What comes with the artifact. `fault`: why it can never be used; completions can be served all the same."""

    def __init__(self, templates: ChatTemplates | None, fault: str | None = None) -> None:
        self.fault = fault
        self.source = "" if templates is None else next(iter(templates.sources.values()), "")
        self._sources = " ".join(templates.sources.values()) if templates is not None else ""
        self._renderers = Renderers(templates) if templates is not None else None

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate | None":
        """That of an artifact, if it has one; `ArtifactError` if a file cannot be read."""
        try:
            templates = read_chat_templates(folder)
        except UnusableTemplate as error:
            return cls(None, str(error))
        except ValueError as error:
            raise ArtifactError(f"{error}: convert the checkpoint again") from None
        return None if templates is None else cls(templates)

    def try_out(self) -> str | None:
        """What keeps it from rendering a user's message, if anything does. The first request finds a process ready."""
        if self._renderers is None:
            return self.fault
        try:
            self._renderers.render({"messages": [{"role": "user", "content": "Hello, world"}]})
        except RenderingFailed as error:
            return str(error)
        except NotReady:
            pass
        return None

    def close(self) -> None:
        """End the processes that render; what they are at is refused."""
        if self._renderers is not None:
            self._renderers.close()

    def text(self, conversation: Mapping[str, Any], encoder: Encoder, *, parse_special: bool) -> str:
        """What the template makes of a conversation, given by the parameters of `Renderer.render`. Blocks.

        Without `parse_special` the names of special tokens in it stay text, which `Encoder.guarded_text` sees to; the
        template's own are always tokens. So is markup such as `<think>` in an answer, if the template knows it.

        Raises:
            RequestError: the template refuses the conversation, or cannot be used.
            NotReady: it is closed.
        """
        if self._renderers is None:
            raise RequestError(f"messages: {self.fault}: repair it, and convert again", param="messages")
        try:
            encoder.check_unicode(json.dumps(conversation, ensure_ascii=False), "messages")
            if not parse_special:
                conversation = self._guarded(conversation, encoder)
            return self._renderers.render(conversation)
        except RenderingFailed as error:
            why = "the chat template refuses them: " if error.param == "messages" else ""
            raise RequestError(f"{error.param}: {why}{error}", param=error.param) from None
        except RecursionError:
            raise RequestError("messages: nested too deeply", param="messages") from None

    def _guarded(self, conversation: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
        known = frozenset(name for name in encoder.markup if name in self._sources)

        def guarded(value: Any, keep: frozenset[str] = frozenset()) -> Any:
            if isinstance(value, str):
                return encoder.guard(value, keep)
            if isinstance(value, list):
                return [guarded(item, keep) for item in value]
            if isinstance(value, dict):
                return {encoder.guard(key): guarded(item, keep) for key, item in value.items()}
            return value

        rest = {name: guarded(value) for name, value in conversation.items() if name != "messages"}
        return rest | {
            "messages": [
                guarded(message, known if message["role"] == "assistant" else frozenset())
                for message in conversation["messages"]
            ]
        }
