"""Asks a server many questions, several at a time; each answer is in a journal as soon as it is there.

A question's key is the hash of all that shapes its answer, so a command that is run again asks only what is missing.
"""

import argparse
import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pangu_training.command import number_within, whole_number
from pangu_training.endpoint import Endpoint, RefusedError, ServedError, identity, post
from pangu_training.line_file import Journal, key_of

if TYPE_CHECKING:
    import httpx

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PRICED_TOKENS = 1e6  # a price is for so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request: the endpoint's path and the body. `what` names it in an error, `key` in a journal."""

    key: str
    path: str
    body: Mapping[str, Any]
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of a reply's texts, and why it ended: `stop`, or `length` when it was cut off."""

    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back: the choices and what they cost, or the words in which the server refused the request."""

    choices: tuple[Choice, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    refused: str = ""


def question(
    endpoint: Endpoint, path: str, body: Mapping[str, Any], what: str, *made_from: object
) -> Question:
    """A question to `endpoint`. `made_from` tells apart what has the same body: the number of a sample, of a try."""
    body = {"model": endpoint.model, **body}
    return Question(key=key_of(identity(endpoint), path, body, made_from), path=path, body=body, what=what)


def ask(
    endpoint: Endpoint, questions: Sequence[Question], journal: Journal, *, concurrency: int, progress: str
) -> list[Reply]:
    """The replies in the questions' order, those of the journal without asking; `progress` names the bar.

    A refusal is not kept in the journal: another server, or the same with another limit, may answer.

    Raises:
        ServedError: the server is gone, stays busy or fails; or it refuses all, and never answered before.
    """
    missing = {question.key: question for question in questions if question.key not in journal.rows}
    refused: dict[str, Reply] = {}
    asyncio.run(_ask(endpoint, missing.values(), journal, refused, concurrency, progress))
    if refused and not journal.rows:
        raise ServedError(f"{endpoint.model} refuses every request: {next(iter(refused.values())).refused}")
    return [refused.get(question.key) or _reply(journal.rows[question.key]) for question in questions]


async def _ask(
    endpoint: Endpoint,
    questions: Iterable[Question],
    journal: Journal,
    refused: dict[str, Reply],
    concurrency: int,
    progress: str,
) -> None:
    import httpx

    waiting = list(questions)
    remaining, limits = iter(waiting), httpx.Limits(max_connections=None)
    with tqdm(total=len(waiting), desc=progress, unit="answer", disable=None) as bar:
        async with httpx.AsyncClient(**endpoint.client_options(), limits=limits) as client:

            async def work() -> None:
                for question in remaining:
                    try:
                        journal.append(question.key, asdict(await answer(client, question)))
                    except RefusedError as error:
                        refused[question.key] = Reply(refused=str(error))
                    bar.update()

            await asyncio.gather(*(work() for _ in range(min(concurrency, len(waiting)))))


async def answer(client: "httpx.AsyncClient", question: Question) -> Reply:
    """The reply to one question; raises as `post` does."""
    started = time.perf_counter()
    came = await post(client, question.path, dict(question.body), question.what)
    seconds = time.perf_counter() - started
    try:
        return Reply(
            choices=tuple(
                Choice(
                    text=(choice["message"]["content"] if question.path == CHAT else choice["text"]) or "",
                    finish_reason=choice["finish_reason"],
                )
                for choice in came["choices"]
            ),
            prompt_tokens=came["usage"]["prompt_tokens"],
            completion_tokens=came["usage"]["completion_tokens"],
            seconds=round(seconds, 3),
        )
    except (LookupError, TypeError) as error:
        raise ServedError(f"{client.base_url} does not answer in OpenAI's form: {error!r} missing") from None


def _reply(row: Mapping[str, Any]) -> Reply:
    fields = {name: row[name] for name in ("prompt_tokens", "completion_tokens", "seconds")}
    return Reply(choices=tuple(Choice(**choice) for choice in row["choices"]), **fields)


def costs(replies: Iterable[Reply], arguments: argparse.Namespace) -> dict[str, Any]:
    """What the replies cost, earlier runs' included: tokens, the requests' seconds, and money where prices are given.

    Requests run beside each other: their seconds are more than those on the clock.
    """
    answered = [reply for reply in replies if not reply.refused]
    prompt = sum(reply.prompt_tokens for reply in answered)
    completion = sum(reply.completion_tokens for reply in answered)
    spent: dict[str, Any] = {
        "requests": len(answered),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "request_seconds": round(sum(reply.seconds for reply in answered), 1),
    }
    if arguments.price_prompt is not None or arguments.price_completion is not None:
        price = prompt * (arguments.price_prompt or 0) + completion * (arguments.price_completion or 0)
        spent["price"] = price / PRICED_TOKENS
    return spent


def add_asking_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which server is asked, how many questions at a time, and what a token costs there."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--base-url",
        metavar="URL",
        required=True,
        help="an OpenAI-style server; its key is in $OPENAI_API_KEY",
    )
    group.add_argument("--model", default="", help="one of the server's models (default: its first)")
    group.add_argument(
        "--concurrency", type=whole_number(1), default=8, help="requests at a time (default: %(default)s)"
    )
    for kind in ("prompt", "completion"):
        group.add_argument(
            f"--price-{kind}",
            type=number_within(0),
            metavar="PRICE",
            help=f"of a million {kind} tokens, in any currency, for the summary",
        )
