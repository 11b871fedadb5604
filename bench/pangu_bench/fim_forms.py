"""The ways in which servers are asked for the code at a cursor; `accepted_form` finds out which one a server takes.

suffix   OpenAI's /v1/completions with `prompt` and `suffix`
infill   llama.cpp's /infill with `input_prefix` and `input_suffix`
off      /v1/completions with `prompt` alone: the model does not see what is behind the cursor
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from pangu_training.asking.endpoint import ServedError
from pangu_training.asking.questions import COMPLETIONS

INFILL = "/infill"
PROBE, SUFFIXES = "value =", ("\n", "\nresult = [value, value]\n" * 16)


class Piece(NamedTuple):
    """What an event, or a whole answer, tells; None: nothing about it. `completion_tokens` are those up to here."""

    text: str
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True, slots=True)
class Form:
    """A way to ask: `body(model, prefix, suffix, new_tokens)` goes to `path`, `piece` reads what comes."""

    name: str
    path: str
    body: Callable[[str, str, str, int], dict[str, Any]]
    piece: Callable[[Mapping[str, Any]], Piece]


def _prompt(model: str, prefix: str, suffix: str, new_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prefix,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def _suffix(model: str, prefix: str, suffix: str, new_tokens: int) -> dict[str, Any]:
    return {**_prompt(model, prefix, suffix, new_tokens), "suffix": suffix}


def _infill(model: str, prefix: str, suffix: str, new_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "input_prefix": prefix,
        "input_suffix": suffix,
        "n_predict": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def _completion_piece(event: Mapping[str, Any]) -> Piece:
    usage = event.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return Piece(
        text="".join(choice["text"] for choice in event["choices"]),
        prompt_tokens=usage.get("prompt_tokens"),
        cached_tokens=details.get("cached_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )


def _infill_piece(event: Mapping[str, Any]) -> Piece:
    timings = event.get("timings") or {}
    return Piece(
        text=event["content"],
        prompt_tokens=event.get("tokens_evaluated"),  # those from the cache too, which `cache_n` counts
        cached_tokens=timings.get("cache_n"),
        completion_tokens=event.get("tokens_predicted"),
    )


FORMS = {
    form.name: form
    for form in (
        Form("suffix", COMPLETIONS, _suffix, _completion_piece),
        Form("infill", INFILL, _infill, _infill_piece),
        Form("off", COMPLETIONS, _prompt, _completion_piece),
    )
}


async def accepted_form(client: httpx.AsyncClient, model: str, wanted: str) -> Form:
    """The form `wanted`; of `auto` the first that the server takes, at the last `off`.

    Raises:
        ServedError: the server is gone, or does not take what is wanted.
    """
    if wanted != "auto":
        form = FORMS[wanted]
        if form.name != "off" and (why := await _refusal(client, form, model)):
            raise ServedError(f"{model}: --fim {wanted}: {why}: try --fim auto")
        return form
    for form in FORMS.values():
        if form.name == "off" or not await _refusal(client, form, model):
            return form
    raise AssertionError("`off` is a form")


async def _refusal(client: httpx.AsyncClient, form: Form, model: str) -> str:
    """Why the server does not take a suffix in this form; empty: it does.

    Some servers ignore what they do not know: a longer suffix must make a longer prompt.
    """
    lengths = []
    for suffix in SUFFIXES:
        try:
            response = await client.post(form.path, json=form.body(model, PROBE, suffix, 1))
        except httpx.HTTPError as error:
            raise ServedError(f"{model}: the server is gone: {error or type(error).__name__}") from None
        if not response.is_success:
            return f"the server said {response.status_code}: {response.text[:200]}"
        try:
            lengths.append(form.piece(response.json()).prompt_tokens)
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"{form.path} answers in another form"
    shorter, longer = lengths
    if shorter is None or longer is None:
        return "the server does not tell its prompt's tokens, so nothing shows that it reads the suffix"
    return "" if longer > shorter else "the server takes the suffix and ignores it"
