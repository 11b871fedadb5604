"""Asks a server many questions, several at a time; each answer is in a journal as soon as it is there.

A question's key is the hash of all that shapes its answer, so a command that is run again asks only what is missing.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.asking.asker import Connection, connect, progress_bar, share
from pangu_training.asking.endpoint import Endpoint, RefusedError, ServedError, identity, post
from pangu_training.asking.options import AskingOptions, GenerationOptions
from pangu_training.evaluation.styles import Prompt
from pangu_training.stage.errors import OutputError
from pangu_training.stage.line_file import Journal, key_of

if TYPE_CHECKING:
    import httpx

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PRICED_TOKENS = 1e6  # a price is for this many


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
    asked_at: float = 0.0  # seconds since 1970
    seconds: float = 0.0
    refused: str = ""


def question(
    endpoint: Endpoint, path: str, body: Mapping[str, Any], what: str, *made_from: object
) -> Question:
    """A question to `endpoint`. `made_from` tells apart what has the same body: the number of a sample, of a try."""
    body = {"model": endpoint.model, **body}
    return Question(key=key_of(identity(endpoint), path, body, made_from), path=path, body=body, what=what)


def prompt_question(key: str, prompt: Prompt, settings: Mapping[str, Any], what: str) -> Question:
    """A question that shows `prompt`; `settings` are the body's other fields."""
    body = dict(settings)
    if prompt.stop:
        body["stop"] = prompt.stop
    if prompt.suffix is not None:
        body["suffix"] = prompt.suffix
    if prompt.messages:
        path, body["messages"] = CHAT, prompt.messages
    else:
        path, body["prompt"] = COMPLETIONS, prompt.text
    return Question(key=key, path=path, body=body, what=what)


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
    if missing:
        asyncio.run(_ask(endpoint, list(missing.values()), journal, refused, concurrency, progress))
    if refused and not journal.rows:
        raise ServedError(f"{endpoint.model} refuses every request: {next(iter(refused.values())).refused}")
    return [refused.get(question.key) or _reply(journal.rows[question.key]) for question in questions]


async def _ask(
    endpoint: Endpoint,
    questions: Sequence[Question],
    journal: Journal,
    refused: dict[str, Reply],
    concurrency: int,
    progress: str,
) -> None:
    async def keep(connection: Connection, question: Question) -> None:
        journal.append(question.key, asdict(await answer(connection.client, question)))

    def keep_refusal(question: Question, error: RefusedError) -> None:
        refused[question.key] = Reply(refused=str(error))

    with progress_bar(len(questions), progress) as bar:
        async with connect(endpoint) as connections:
            await share(
                connections, questions, keep, concurrency=concurrency, on_refusal=keep_refusal, bar=bar
            )


async def answer(client: "httpx.AsyncClient", question: Question) -> Reply:
    """The reply to one question; raises as `post` does."""
    asked_at, started = time.time(), time.perf_counter()
    came = await post(client, question.path, dict(question.body), question.what)
    seconds = time.perf_counter() - started
    try:
        if not came["choices"]:
            raise LookupError("choices")
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
            asked_at=round(asked_at, 3),
            seconds=round(seconds, 3),
        )
    except (LookupError, TypeError) as error:
        raise ServedError(f"{client.base_url} does not answer in OpenAI's form: {error!r} missing") from None


def _reply(row: Mapping[str, Any]) -> Reply:
    fields = {name: row[name] for name in ("prompt_tokens", "completion_tokens", "asked_at", "seconds")}
    return Reply(choices=tuple(Choice(**choice) for choice in row["choices"]), **fields)


def costs(replies: Sequence[Reply], asking: AskingOptions) -> dict[str, Any]:
    """What the replies cost, earlier runs' included: tokens, money where prices are given, seconds.

    Seconds are those on the clock in which some request was under way.
    """
    answered = [reply for reply in replies if not reply.refused]
    prompt = sum(reply.prompt_tokens for reply in answered)
    completion = sum(reply.completion_tokens for reply in answered)
    seconds = until = 0.0
    for reply in sorted(answered, key=lambda reply: reply.asked_at):
        end = reply.asked_at + reply.seconds
        seconds += max(0.0, end - max(until, reply.asked_at))
        until = max(until, end)
    spent: dict[str, Any] = {
        "requests": len(answered),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "seconds": round(seconds, 1),
    }
    if asking.price_prompt is not None or asking.price_completion is not None:
        price = prompt * (asking.price_prompt or 0) + completion * (asking.price_completion or 0)
        spent["price"] = price / PRICED_TOKENS
    return spent


def cost_words(spent: Mapping[str, Any]) -> str:
    """`costs` in a summary's line."""
    price = f", price {spent['price']:.4f}" if "price" in spent else ""
    return (
        f"{spent['requests']} requests, {spent['prompt_tokens']:,} + {spent['completion_tokens']:,} tokens, "
        f"{spent['seconds']:,.1f} s{price}"
    )


def sibling(output: Path, name: str) -> Path:
    """`output`'s sibling: `evolved.jsonl` -> `evolved.NAME.jsonl`."""
    return output.with_name(f"{output.stem}.{name}{output.suffix}")


def journal_for(verb: str, output: Path, *others: Path) -> Journal:
    """The journal of a verb that writes `output`, and `others`: `.OUTPUT.VERB.journal`, hidden, in the same folder.

    It stays when the command is done: with more rounds or samples only those are asked.

    Raises:
        OutputError: a file is there already, and no journal says that it is this verb's.
        LineFileError: another process has the journal, or it is damaged.
    """
    path = output.with_name(f".{output.name}.{verb}.journal")
    for file in (output, *others):
        if file.exists() and not path.exists():
            raise OutputError(f"{file} exists already and has other work: choose another --output")
    return Journal(path)


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages to a server's model, and how its answers are drawn."""

    endpoint: Endpoint
    journal: Journal
    asking: AskingOptions
    generation: GenerationOptions

    def ask(self, messages: Iterable[tuple[str, tuple[str, ...]]], progress: str) -> list[Reply]:
        """The replies to messages, each with words that tell it apart: the problem, which sample or try."""
        questions = [
            question(
                self.endpoint,
                CHAT,
                {"messages": [{"role": "user", "content": message}], **self._settings(words)},
                ", ".join(words),
                *words,
            )
            for message, words in messages
        ]
        concurrency = self.asking.concurrency
        return ask(self.endpoint, questions, self.journal, concurrency=concurrency, progress=progress)

    def _settings(self, words: tuple[str, ...]) -> dict[str, Any]:
        """How an answer is drawn; with a seed, the same for the same words."""
        body = asdict(self.generation)
        seed = body.pop("seed")
        return body if seed is None else {**body, "seed": int(key_of(seed, words)[:7], 16)}
