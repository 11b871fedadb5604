"""From a conversation to text by a chat template, as `apply_chat_template` of transformers 5 renders it.

The rules are written down here once more because a server has no transformers; `tests/convert/test_rendering.py` holds
the two together. A template is a program of somebody else: call this in a process that has bounds.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes, pass_eval_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

CALL_OPENS = "<tool_call>"
OTHER_CALLS = "<function="  # Qwen3-Coder's calls are in these tags, but not JSON
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of the same field of a message
# transformers' own mark: a template may write a message twice. Its last character shows whether it is trimmed.
HERE = "CONTINUE_FINAL_MESSAGE_TAG "


class NoTools(ValueError):
    """The template has no place for tools, or its calls have a form that nobody here can read."""


class Renderer:
    """The templates of one model, compiled when they are first used."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources, self._special_tokens = sources, special_tokens
        self._environment = _environment()
        self._compiled: dict[str, Any] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation. Keys whose value is None are as if they were not there.

        Raises:
            NoTools: tools are given, and the template does not take them, or their calls could not be read.
            Exception: whatever a template may raise; `TemplateError` where it refuses the messages.
        """
        name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise ValueError(f"none of the chat templates ({', '.join(self._sources)}) is the default one")
        source = self._sources[name]
        if tools is not None:
            self._require_tools(source)
        kept = [{key: value for key, value in one.items() if value is not None} for one in messages]
        conversation = [_reasoning_by_all_names(message) for message in kept]
        if continue_final_message:
            final = _continued(conversation[-1], source)
        if name not in self._compiled:
            self._compiled[name] = self._environment.from_string(source)
        given = {**self._special_tokens, **(variables or {})}
        text: str = self._compiled[name].render(
            messages=conversation,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            **given,
        )
        return _cut(text, final) if continue_final_message else text

    def _require_tools(self, source: str) -> None:
        if "tools" not in find_undeclared_variables(self._environment.parse(source)):
            raise NoTools("this model's chat template has no place for tools: leave them out")
        if CALL_OPENS not in source or OTHER_CALLS in source:
            raise NoTools(
                f"this model writes tool calls in a form that is not read here, which is {CALL_OPENS} with JSON: "
                "send tool_choice none, and describe the tools in a message"
            )


def _reasoning_by_all_names(message: dict[str, Any]) -> dict[str, Any]:
    for name in REASONING:
        if name in message:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


def _continued(message: dict[str, Any], source: str) -> str:
    """Put the mark behind the content of `message`; the content as it was."""
    content = message.get("content")
    if not isinstance(content, str) or "content" not in source:
        raise ValueError(
            "continue_final_message needs a last message with a content, and a template that takes it"
        )
    message["content"] = content + HERE
    return content


def _cut(text: str, final: str) -> str:
    """`text` up to the mark. A template that trims took white space before it away, too."""
    place = text.rfind(HERE.strip())
    if place < 0 or final.strip() not in text:
        raise ValueError("continue_final_message: the template does not write the last message as it is")
    return text[:place] if text[place : place + len(HERE)] == HERE else text[:place].rstrip()


class _Generation(Extension):
    """The tag around what an assistant says, which is marked for training; here it is only what it holds.

    A block of its own, as in transformers: what is set inside is not set behind it.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_held"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _held(self, context: nodes.EvalContext, caller: Any) -> str:
        return str(caller())


class _Dict:
    """`dict` without the attributes of the class."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """`namespace` without names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *rest = arguments  # so that a template may name an attribute `self`
        attributes = dict(*rest, **named)
        for name in attributes:
            _require_plain(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have {name!r}: names begin with no underscore there")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_Dict(), namespace=_Namespace)
    return environment


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
