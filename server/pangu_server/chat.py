"""The checkpoint's chat template: from messages to a prompt. Rendered as transformers renders it."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pangu_convert.artifact import ArtifactError
from pangu_server.encoding import Encoder
from pangu_server.errors import RequestError
from pangu_training.stage.files import is_there, read_bytes, read_object

NO_TEMPLATE = "this model has no chat template: use /v1/completions"


class ChatTemplate:
    """A Jinja template that comes with the artifact, run in a sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        from jinja2.exceptions import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """transformers' tag for what an assistant says, which it marks for training: here only what it holds."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, Generation],
            optimized=False,  # else constants are computed here, however large they come out
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._error = TemplateError
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ArtifactError(
                f"the chat template cannot be used ({error}): repair it, and convert again"
            ) from None
        self._special_tokens = special_tokens

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate | None":
        """The template of an artifact, if it has one; `ArtifactError` if it cannot be used."""
        config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        file = config_file
        try:
            config = read_object(config_file) if is_there(config_file) else {}
            file = template_file
            source = read_bytes(file).decode() if is_there(file) else config.get("chat_template")
        except ValueError as error:
            raise ArtifactError(f"{file} cannot be read ({error}): convert the checkpoint again") from None
        if isinstance(source, list):  # several by name
            named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
            source = named[0].get("template") if named else None
        if not source:
            return None
        if not isinstance(source, str):
            raise ArtifactError(f"chat_template in {config_file} is not a text: repair it, and convert again")
        tokens = {name: config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        texts = {
            name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()
        }
        return cls(source, {name: text for name, text in texts.items() if isinstance(text, str) and text})

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], encoder: Encoder, *, parse_special: bool
    ) -> list[int]:
        """The ids of a conversation up to where the assistant answers.

        Without `parse_special` the names of special tokens in the messages stay text; the template's own are
        always tokens.

        Raises:
            RequestError: the template refuses the messages (their roles, or their order).
        """
        guarded = (
            messages
            if parse_special
            else [{**message, "content": encoder.guard(message["content"])} for message in messages]
        )
        try:
            text = self._template.render(messages=guarded, add_generation_prompt=True, **self._special_tokens)
        except (self._error, TypeError, KeyError) as error:
            raise RequestError(
                f"messages: the chat template refuses them: {error}", param="messages"
            ) from None
        # The template writes the start-of-text token itself.
        return encoder.guarded_text(text)
