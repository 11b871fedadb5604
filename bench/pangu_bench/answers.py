"""Asks a server for answers, several at a time; each is a row as soon as it is there."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import httpx

from pangu_bench.options import AnswerOptions
from pangu_bench.rows import GenerationRow, RowFile
from pangu_training.asking import questions
from pangu_training.asking.asker import Connection, connect, progress_bar, share
from pangu_training.asking.endpoint import Endpoint
from pangu_training.asking.questions import prompt_question
from pangu_training.evaluation.problem import Problem
from pangu_training.evaluation.styles import style_for


def missing(
    rows: RowFile, problems: Iterable[Problem], options: AnswerOptions
) -> Iterator[tuple[Problem, int]]:
    """The problems, each with the number of a sample, whose answers are not there yet."""
    for problem in problems:
        for sample in range(options.samples):
            if not rows.has(GenerationRow, problem.suite, options.style, problem.task_id, sample):
                yield problem, sample


def answer(rows: RowFile, problems: Iterable[Problem], options: AnswerOptions, endpoint: Endpoint) -> None:
    """Append the answers that are missing.

    Raises:
        ServedError: the server is gone, stays busy, or refuses a prompt.
    """
    asyncio.run(_answer(rows, list(missing(rows, problems, options)), options, endpoint))


async def _answer(
    rows: RowFile, jobs: list[tuple[Problem, int]], options: AnswerOptions, endpoint: Endpoint
) -> None:
    async def keep(connection: Connection, job: tuple[Problem, int]) -> None:
        rows.append(await _ask(connection.client, endpoint.model, *job, options))

    with progress_bar(len(jobs), f"asking {endpoint.model}") as bar:
        async with connect(endpoint) as connections:
            await share(connections, jobs, keep, concurrency=options.concurrency, bar=bar)


async def _ask(
    client: httpx.AsyncClient, model: str, problem: Problem, sample: int, options: AnswerOptions
) -> GenerationRow:
    settings: dict[str, Any] = {
        "model": model,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
    }
    if options.seed is not None:
        settings["seed"] = options.seed + sample
    prompt = style_for(problem, options.style).prompt(problem)
    reply = await questions.answer(
        client, prompt_question("", prompt, settings, f"{model}, {problem.task_id}")
    )
    return GenerationRow(
        suite=problem.suite,
        style=options.style,
        task_id=problem.task_id,
        sample=sample,
        answer=reply.choices[0].text,
        finish_reason=reply.choices[0].finish_reason,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        seconds=reply.seconds,
    )
