"""A random history of a server: who asks for what and when, what fails, and a ledger of what must have come of it."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pangu_server.backends.sampling import Sampler
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs
from pangu_server.completion import Completion
from pangu_server.engine import Engine
from pangu_server.errors import Overloaded, ServerError
from pangu_server.generation import Generation, GenerationOptions, Prompt
from pangu_server.limits import Limits
from pangu_server.text import TextOptions
from support.scripted import CONTEXT_LENGTH, END, logits
from support.simulated import ADAPTERS, CONTEXT, MAX_BATCH, Clock, Simulated, script, simulated

assert CONTEXT <= CONTEXT_LENGTH
# What the ledger and the metrics both count
COUNTED = (
    *(f"ended {reason}" for reason in ("stop", "length", "abort", "error")),
    *(f"cancelled {stage}" for stage in ("queued", "running", "deadline")),
    *(f"rejected {reason}" for reason in ("queue_full", "draining")),
    "tokens",
    "prompt tokens",
)


@dataclass
class Watched:
    """A completion, and what the schedule has told it."""

    completion: Completion
    starts: int = 0
    ends: list[Exception | None] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    unread: bool = False  # its prompt's log-probabilities are still to come

    def __post_init__(self) -> None:
        started, ended = self.completion.on_start, self.completion.on_end
        read, told = self.completion.on_prompt, self.completion.on_token

        def on_start() -> None:
            self.starts += 1
            assert not self.ends, "it began after its end"
            started()

        def on_end(error: Exception | None) -> None:
            self.ends.append(error)
            ended(error)

        def on_prompt(logprobs: Sequence[TokenLogprobs | None]) -> None:
            self.unread = False
            read(logprobs)

        def on_token(token_id: int, logprobs: TokenLogprobs | None) -> bool:
            self.tokens.append(token_id)
            return told(token_id, logprobs)

        self.unread = self.completion.sampling.prompt_logprobs is not None
        self.completion.on_prompt = on_prompt  # type: ignore[method-assign]
        self.completion.on_token = on_token  # type: ignore[method-assign]
        self.completion.on_start = on_start  # type: ignore[method-assign]
        self.completion.on_end = on_end  # type: ignore[method-assign]


@dataclass
class Request:
    """What a client asks for, and what came of it."""

    options: GenerationOptions
    prompts: list[Prompt]
    generation: Generation | None = None
    watched: list[Watched] = field(default_factory=list)
    refused: ServerError | None = None
    left: bool = False  # its client went away before the end


class History:
    """One server's life."""

    def __init__(self, engine: Engine, kind: str, seed: int) -> None:
        self.draw = draw = random.Random(f"{kind} {seed}")
        self.clock = Clock(draw, fault_rate=draw.choice([0, 0, 0.03]))
        self.backend: Simulated = simulated(kind, self.clock, draw)
        self.requests = [self._request() for _ in range(draw.randint(1, 8))]
        self.turns = 0
        self.closes = draw.random() < 0.3
        self.engine = engine
        engine.limits = Limits(
            max_queued=draw.choice([2, 128]), max_request_seconds=draw.choice([600, 600, 1.5])
        )
        engine.draining = False

    def _request(self) -> Request:
        draw = self.draw
        base = draw.choice(["", "abcabcabcabcabcabcabc", "fedfedfedfedfedfedfedfedfedfedfedfed"])
        texts = [
            base + "".join(draw.choices("abcdef\n", k=draw.randint(1, 20)))
            for _ in range(draw.choice([1, 1, 2]))
        ]
        count, scored, drawn = draw.choice([1, 1, 1, 3]), draw.random() < 0.15, draw.random() < 0.3
        options = GenerationOptions(
            sampling=SamplingOptions(
                max_tokens=draw.choice([0, 1, 5, 12, 30]),
                temperature=0.8 if drawn else 0.0,
                seed=draw.randrange(100) if drawn else None,
                prompt_logprobs=1 if scored else None,
                logprobs=2 if draw.random() < 0.2 else None,
                adapter=draw.choice([None, *ADAPTERS]),
            ),
            n=count,
            best_of=count,
            text=TextOptions(stop=tuple(draw.sample(["ab", "c\n", "ff", "dea"], draw.choice([0, 0, 1])))),
            ignore_eos=draw.random() < 0.2,
            stream=draw.random() < 0.5,
        )
        return Request(
            options, [Prompt([ord(one) for one in text], text if scored else None) for text in texts]
        )

    def run(self) -> None:
        """From the first request until nobody waits."""
        self.engine.load(self.backend)
        for request in self.requests:
            self.clock.call_later(self.draw.random() * 4, self._ask, request)
        if self.closes:
            end = self.draw.random() * 5
            self.clock.call_later(end, self.engine.drain)
            self.clock.call_later(end + self.draw.random(), self.engine.close)
        schedule = self.backend.schedule
        while True:
            if schedule.waiting or schedule.running:
                schedule.attempt()
                self.turns += 1
                self.clock.advance(0.001)
                assert self.turns <= self._most_turns(), "it goes on for ever"
            elif not self.clock.skip():
                return

    def _most_turns(self) -> int:
        """If each turn brings somebody a token, or a piece of a prompt, or is a fault's: and what is put back again."""
        work = sum(
            len(request.options.sampling.prediction) + request.options.sampling.max_tokens + 8
            for request in self.requests
            for _ in range(len(request.prompts) * request.options.best_of)
        )
        return work * (2 + self.backend.counts().preemptions) + self.clock.faults

    def _ask(self, request: Request) -> None:
        try:
            request.generation = self.engine.submit(request.prompts, request.options)
        except ServerError as error:
            request.refused = error
            return
        request.watched = [Watched(completion) for completion in request.generation.completions]
        if self.draw.random() < 0.2:
            self.clock.call_later(self.draw.random() * 3, self._leave, request)

    def _leave(self, request: Request) -> None:
        assert request.generation
        request.left = not all(completion.ended for completion in request.generation.completions)
        request.generation.cancel()

    # ------------------------------------------------------------------ what must have come of it

    def check(self, counted: Mapping[str, float]) -> Counter[str]:
        """Compare with the ledger, which is returned. `counted` is how much each metric has grown."""
        ledger: Counter[str] = Counter()
        for request in self.requests:
            if request.generation is None:
                assert request.refused is not None, "neither taken nor refused"
                ledger[
                    "rejected " + ("queue_full" if isinstance(request.refused, Overloaded) else "draining")
                ] += 1
            else:
                self._check(request, request.generation, ledger)
        assert self.engine.load_count.waiting == self.engine.load_count.running == 0
        assert self.backend.held == 0, "pages that nobody gave back"
        for name in COUNTED:
            assert counted[name] == ledger[name], name
        if self.backend.info.name == "torch":
            assert ledger["ended error"] == self.clock.faults, "a fault ends one request, and only that"
        else:
            assert ledger["ended error"] <= self.clock.faults * MAX_BATCH
        counts = self.backend.counts()
        assert 0 <= counts.prefix_hits <= counts.prefix_queries
        assert 0 <= counts.accepted <= counts.drafted
        return ledger

    def _check(self, request: Request, generation: Generation, ledger: Counter[str]) -> None:
        text = {watched.completion.index: "" for watched in request.watched}
        pieces, reasons = Counter[int](), dict[int, str]()
        errors = []
        while not generation._events.empty():
            event = generation._events.get_nowait()
            if isinstance(event, Exception):
                errors.append(event)
                continue
            assert event.index not in reasons, "a piece after the end"
            text[event.index] += event.text
            pieces[event.index] += 1
            if event.finish_reason:
                reasons[event.index] = event.finish_reason
        assert len(reasons) + len(errors) == len(request.watched), "each ends once for its client"
        assert request.options.stream or max(pieces.values(), default=0) <= 1, (
            "pieces of what is not streamed"
        )
        for watched in request.watched:
            completion = watched.completion
            assert len(watched.ends) == 1, "each ends once"
            assert watched.starts <= 1
            ledger["tokens"] += completion.completion_tokens
            ledger["prompt tokens"] += len(completion.prompt_ids) * watched.starts
            reason = reasons.get(completion.index)
            wanted = alone(request, completion)
            assert wanted.tokens[: len(watched.tokens)] == watched.tokens, "other tokens than alone"
            assert wanted.raw.startswith(text[completion.index]), "another text than alone"
            if watched.ends[0] is not None:
                assert reason is None
                ledger["ended error"] += 1
                continue
            if watched.tokens == wanted.tokens and watched.starts and not watched.unread:
                assert (text[completion.index], reason) == (wanted.text, wanted.reason)
                ledger[f"ended {reason}"] += 1
                continue
            assert request.left or completion.expired or self.closes, "cut short by nobody"
            assert watched.starts or reason is None, "an answer to what never began"
            stage = "deadline" if completion.expired else "running" if watched.starts else "queued"
            ledger[f"cancelled {stage}"] += 1
            ledger["ended length" if completion.expired else "ended abort"] += 1


class Alone(NamedTuple):
    """What becomes of a completion with nobody else there."""

    text: str
    raw: str  # with what stopped it
    reason: str
    tokens: list[int]


def alone(request: Request, completion: Completion) -> Alone:
    """By the definition of sampling."""
    tokens, options = list(completion.prompt_ids), completion.sampling
    sampler = Sampler(completion.prompt_ids, options)
    echo, text = request.prompts[completion.index // request.options.best_of].echo or "", ""
    reason, cut = "length", None
    for _ in range(options.max_tokens):
        tokens.append(sampler(logits(script(tokens))))
        if tokens[-1] in options.end_token_ids:
            reason = "stop"
            break
        text += chr(tokens[-1]) if tokens[-1] < END else ""
        found = [stop for stop in request.options.text.stop if stop in text]
        if found:
            reason, cut = "stop", text.index(found[0])
            break
    return Alone(echo + text[:cut], echo + text, reason, tokens[len(completion.prompt_ids) :])
