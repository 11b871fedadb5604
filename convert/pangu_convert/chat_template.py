"""The chat templates that come with a checkpoint or an artifact, and whether the default one works."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_training.stage.bounded import bounded
from pangu_training.stage.files import is_there, read_bytes, read_object

CONFIG, TEMPLATE, SPECIAL_TOKENS = "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"
# What transformers gives to a template besides the conversation.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplates:
    """Jinja sources by name, `default` and perhaps `tool_use`, and the special tokens that they may write."""

    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]


class UnusableTemplate(ValueError):
    """The files can be read, but what they name as a template is none."""


def read_chat_templates(folder: Path) -> ChatTemplates | None:
    """Those of a checkpoint or an artifact; None if it has none.

    Raises:
        ValueError: a file cannot be read.
        UnusableTemplate: `chat_template` is neither a text nor a list of named texts.
    """
    config = _object(folder / CONFIG)
    found: Any = config.get("chat_template")
    if is_there(folder / TEMPLATE):
        try:
            found = read_bytes(folder / TEMPLATE).decode()
        except ValueError as error:
            raise ValueError(f"{folder / TEMPLATE} cannot be read ({error})") from None
    if not found:
        return None
    sources = {"default": found}
    if isinstance(found, list):
        sources = {
            str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)
        }
    if not sources or not all(isinstance(source, str) for source in sources.values()):
        raise UnusableTemplate(
            f"chat_template in {folder / CONFIG} is neither a text nor a list of named ones"
        )
    if "added_tokens_decoder" not in config:  # transformers takes the older file only then
        config = {**config, **_object(folder / SPECIAL_TOKENS)}
    return ChatTemplates(sources=sources, special_tokens=_special_tokens(config))


def template_fault(folder: Path) -> str | None:
    """What keeps the chat template in `folder` from rendering a user's message, in words. None: nothing does.

    It runs in a process of its own, with bounds.
    """
    try:
        templates = read_chat_templates(folder)
        if templates is not None:
            bounded(__name__, "try_out", templates.sources, templates.special_tokens, libraries=("jinja2",))
    except ValueError as error:
        return str(error)
    return None


def try_out(sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
    """Render the shortest conversation there is; raises whatever the template does.

    Raises:
        ValueError: what it renders does not hold the user's words.
    """
    from pangu_convert.rendering import Renderer

    words = "Hello, world"
    if words not in Renderer(sources, special_tokens).render([{"role": "user", "content": words}]):
        raise ValueError("it leaves out what a user says")


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_object(file) if is_there(file) else {}
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error})") from None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {name: config.get(name) for name in NAMED_TOKENS}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}
