"""Draws responses from one source: its servers share the requests, and each response is in a journal at once."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

from pangu_training.asking.asker import Connection, connect, progress_bar, share
from pangu_training.asking.endpoint import Endpoint, RefusedError, ServedError
from pangu_training.asking.questions import Question, Reply, answer, prompt_question
from pangu_training.asking.sources import Source
from pangu_training.data.responses import Response, response_of
from pangu_training.evaluation.styles import Prompt, style_for
from pangu_training.evaluation.suites import problem_of
from pangu_training.evaluation.words import ProblemRow
from pangu_training.stage.line_file import Journal, key_of
from pangu_training.stage.options import counted, number_within, option

RESPONSES = "responses"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawOptions:
    """How responses are drawn."""

    samples: int = counted(
        "of each source to each problem at each temperature", 1, metavar="K", group=RESPONSES
    )
    temperatures: tuple[float, ...] = option(
        "0 is greedy", (0.2, 0.8), type=number_within(0, 2), metavar="T", group=RESPONSES
    )
    top_p: float = option("", 0.95, type=number_within(0, 1), group=RESPONSES)
    max_tokens: int = counted("a response", 1024, metavar=None, group=RESPONSES)
    seed: int | None = option(
        "sample i is asked for by itself, with seed + i (default: draw anew)", None, group=RESPONSES
    )
    concurrency: int = counted("requests at a time to each server", 8, metavar=None, group=RESPONSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Samples of one prompt at one temperature: their numbers, and their rows' keys."""

    problem: str
    prompt: Prompt
    temperature: float
    keys: Mapping[int, str]


def draws_of(source: Source, rows: Sequence[ProblemRow], options: DrawOptions) -> list[Draw]:
    """All that `options` ask of `source`, problem by problem. With a seed every sample is drawn by itself."""
    numbers = range(options.samples)
    together = [numbers] if options.seed is None else [range(number, number + 1) for number in numbers]
    draws = []
    for row in rows:
        problem = problem_of(row)
        prompt = style_for(problem, source.style).prompt(problem)
        about = [source.role, source.name, dict(source.identity), source.style, row.id, asdict(prompt)]
        for temperature in options.temperatures:
            how = [temperature, options.top_p, options.max_tokens, options.seed]
            draws += [
                Draw(
                    problem=row.id,
                    prompt=prompt,
                    temperature=temperature,
                    keys={sample: key_of(about, how, sample) for sample in samples},
                )
                for samples in together
            ]
    return draws


class Drawing:
    """All that is asked of a source. `refusals` has the server's words, the tokens and seconds are those of `run`."""

    def __init__(
        self, source: Source, problems: Sequence[ProblemRow], options: DrawOptions, journal: Journal
    ) -> None:
        self.source, self._options, self._journal = source, options, journal
        self._draws = draws_of(source, problems, options)
        self._takes_n = True  # several samples a request
        self.refusals: list[str] = []
        self.drawn = self.tokens = 0
        self.seconds = 0.0

    @property
    def keys(self) -> list[str]:
        """Of all rows that are asked for."""
        return [key for draw in self._draws for key in draw.keys.values()]

    @property
    def finished(self) -> bool:
        """Whether all are there."""
        return all(key in self._journal.rows for key in self.keys)

    @property
    def responses(self) -> list[Response]:
        """Those that are there."""
        rows = self._journal.rows
        return [response_of(rows[key]) for key in self.keys if key in rows]

    def run(self, endpoints: Sequence[Endpoint]) -> None:
        """Draw what the journal lacks.

        Raises:
            ServedError: no server is left, or all that is asked is refused. A server that is gone, stays busy or fails
                is left out, with a warning, while another lives.
        """
        waiting = [draw for draw in self._draws if self._missing(draw)]
        total = sum(len(self._missing(draw)) for draw in waiting)
        started = time.perf_counter()
        with progress_bar(total, f"{self.source.role} {self.source.name}", "response") as self._bar:
            asyncio.run(self._share(endpoints, waiting))
        self.seconds = time.perf_counter() - started
        if self.refusals and not self.responses:
            raise ServedError(f"{self.source.name} refuses every problem: {self.refusals[0]}")

    async def _share(self, endpoints: Sequence[Endpoint], waiting: Sequence[Draw]) -> None:
        async with connect(*endpoints) as connections:
            await share(
                connections,
                waiting,
                self._ask,
                concurrency=self._options.concurrency,
                on_refusal=self._refused,
                name=self.source.name,
            )

    def _refused(self, draw: Draw, error: RefusedError) -> None:
        self.refusals.append(str(error))
        self._bar.update(len(self._missing(draw)))

    async def _ask(self, connection: Connection, draw: Draw) -> None:
        """Draw what is missing of `draw`, in one request where the server takes `n`."""
        takes_n = self._takes_n
        while missing := self._missing(draw):
            samples = missing if takes_n else missing[:1]
            try:
                question = self._question(connection.endpoint.model, draw, samples)
                reply = await answer(connection.client, question)
            except RefusedError:
                if len(samples) == 1:
                    raise
                takes_n = False  # or what it refuses is the prompt: one sample alone will tell
                continue
            if not takes_n or len(reply.choices) < len(samples):
                takes_n = self._takes_n = False
            self._keep(draw, samples, reply)

    def _missing(self, draw: Draw) -> list[int]:
        return [sample for sample, key in draw.keys.items() if key not in self._journal.rows]

    def _question(self, model: str, draw: Draw, samples: Sequence[int]) -> Question:
        options = self._options
        settings: dict[str, Any] = {
            "model": model,
            "max_tokens": options.max_tokens,
            "temperature": draw.temperature,
            "top_p": options.top_p,
        }
        if len(samples) > 1:
            settings["n"] = len(samples)
        if options.seed is not None:
            settings["seed"] = options.seed + samples[0]
        what = f"{self.source.name}, {draw.problem}"
        return prompt_question(draw.keys[samples[0]], draw.prompt, settings, what)

    def _keep(self, draw: Draw, samples: Sequence[int], reply: Reply) -> None:
        shares = token_shares(reply.completion_tokens, [choice.text for choice in reply.choices])
        for sample, choice, tokens in zip(samples, reply.choices, shares, strict=False):
            response = Response(
                key=draw.keys[sample],
                problem=draw.problem,
                role=self.source.role,
                source=self.source.name,
                model=self.source.model,
                style=self.source.style,
                temperature=draw.temperature,
                sample=sample,
                text=choice.text,
                finish_reason=choice.finish_reason,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=tokens,
                seconds=reply.seconds,
            )
            self._journal.append(response.key, asdict(response))
            self.drawn += 1
            self.tokens += tokens
            self._bar.update()


def token_shares(tokens: int, texts: Sequence[str]) -> list[int]:
    """`tokens` shared out by the lengths of `texts`, an end of text each included; the shares add up to `tokens`."""
    ends = list(accumulate(len(text) + 1 for text in texts))
    return [end - start for start, end in pairwise([0, *(tokens * end // ends[-1] for end in ends)])]
