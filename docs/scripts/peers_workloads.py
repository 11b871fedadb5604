"""What `peers.py` asks of each system, and what the times of the answers come to."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peers_systems import Request, Timing

from pangu_bench.costs import spread

MEASURES = ("decode", "prefill", "editor", "fim", "clients")
MORE_IS_BETTER = "tokens/s"  # less of every other unit

DECODE_TOKENS, DECODE_NEW_TOKENS = 64, 64
PREFILL_TOKENS = 512
FILE_TOKENS, KEYSTROKE_TOKENS, BEHIND_TOKENS, EDITOR_NEW_TOKENS = 1500, 5, 300, 16
PROMPT_TOKENS, NEW_TOKENS = (
    (23, 48, 96, 160, 240, 350, 482),
    (32, 64),
)  # of the clients, in turn: every pair comes
WARM_UP_CLIENTS = 4

Fim = Callable[
    [Sequence[int], Sequence[int]], Sequence[int]
]  # tokens before and behind the cursor -> a prompt
Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured; counts are requests."""

    measures: Sequence[str]
    threads: int
    decode_threads: Sequence[int]
    clients: Sequence[int]
    requests: int  # of decode and prefill
    keystrokes: int  # of the editor
    per_client: int


class Code:
    """Source files as token ids; `seed` draws the pieces."""

    def __init__(self, files: Sequence[list[int]], seed: str) -> None:
        self._files, self._choice = files, random.Random(seed)

    def piece(self, length: int) -> list[int]:
        """`length` tokens in a row, from anywhere."""
        file = self._choice.choice([file for file in self._files if len(file) > length])
        start = self._choice.randrange(len(file) - length)
        return file[start : start + length]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`warm_up` requests that do not count and `requests` that do, to a system with `threads`, `clients` at a time."""

    name: str
    threads: int
    clients: int = 1
    warm_up: int = 1
    requests: int
    make: Callable[[Code, int], list[Request]]  # that many requests
    figures: Callable[[float, Sequence[Request], Sequence[Timing]], Figures]

    def shape(self) -> dict[str, Any]:
        """What makes two measurements the same, as JSON."""
        shape = asdict(self)
        return {name: value for name, value in shape.items() if name not in ("make", "figures")}


def workloads(sizes: Sizes, fim: Fim) -> list[Workload]:
    """What is asked for, in order."""

    def typed_inside(code: Code, count: int) -> list[Request]:
        behind = code.piece(BEHIND_TOKENS)
        return [Request(fim(before, behind), new_tokens) for before, new_tokens in typed(code, count)]

    one = sizes.threads
    found = {
        "decode": [
            Workload(
                name=f"decode, {_counted(threads, 'thread')}",
                threads=threads,
                requests=sizes.requests,
                make=lambda code, count: _alike(code, count, DECODE_TOKENS, DECODE_NEW_TOKENS),
                figures=decode_figures,
            )
            for threads in sizes.decode_threads
        ],
        "prefill": [
            Workload(
                name="prefill",
                threads=one,
                requests=sizes.requests,
                make=lambda code, count: _alike(code, count, PREFILL_TOKENS, 1),
                figures=prefill_figures,
            )
        ],
        "editor": [
            Workload(
                name="editor", threads=one, requests=sizes.keystrokes, make=typed, figures=editor_figures
            )
        ],
        "fim": [
            Workload(
                name="editor, fim",
                threads=one,
                requests=sizes.keystrokes,
                make=typed_inside,
                figures=editor_figures,
            )
        ],
        "clients": [
            Workload(
                name=_counted(clients, "client"),
                threads=one,
                clients=clients,
                warm_up=min(clients, WARM_UP_CLIENTS),
                requests=max(len(PROMPT_TOKENS) * len(NEW_TOKENS), sizes.per_client * clients),
                make=mixed,
                figures=load_figures,
            )
            for clients in sizes.clients
        ],
    }
    return [workload for measure in MEASURES if measure in sizes.measures for workload in found[measure]]


def typed(code: Code, count: int) -> list[Request]:
    """A file, and after each keystroke again."""
    file = code.piece(FILE_TOKENS + KEYSTROKE_TOKENS * (count - 1))
    ends = range(FILE_TOKENS, len(file) + 1, KEYSTROKE_TOKENS)
    return [Request(file[:end], EDITOR_NEW_TOKENS) for end in ends]


def mixed(code: Code, count: int) -> list[Request]:
    """Short and long ones."""
    return [
        Request(code.piece(PROMPT_TOKENS[i % len(PROMPT_TOKENS)]), NEW_TOKENS[i % len(NEW_TOKENS)])
        for i in range(count)
    ]


def decode_figures(seconds: float, requests: Sequence[Request], timings: Sequence[Timing]) -> Figures:
    """Median time of a token after the first."""
    gaps = (
        (timing.last - timing.first) / (request.new_tokens - 1)
        for request, timing in zip(requests, timings, strict=True)
    )
    return {"ms/token": 1e3 * statistics.median(gaps)}


def prefill_figures(seconds: float, requests: Sequence[Request], timings: Sequence[Timing]) -> Figures:
    """Tokens of a prompt over its median time to the first token."""
    return {MORE_IS_BETTER: PREFILL_TOKENS / statistics.median(timing.first for timing in timings)}


def editor_figures(seconds: float, requests: Sequence[Request], timings: Sequence[Timing]) -> Figures:
    """Median waits of one who types."""
    return {
        "TTFT, ms": 1e3 * statistics.median(timing.first for timing in timings),
        "answer, ms": 1e3 * statistics.median(timing.last for timing in timings),
    }


def load_figures(seconds: float, requests: Sequence[Request], timings: Sequence[Timing]) -> Figures:
    """What all clients get, and how long the unlucky ones wait."""
    waits = spread([timing.first for timing in timings])
    assert waits is not None
    return {
        MORE_IS_BETTER: sum(request.new_tokens for request in requests) / seconds,
        "TTFT p95, ms": 1e3 * waits["p95"],
    }


def _alike(code: Code, count: int, prompt_tokens: int, new_tokens: int) -> list[Request]:
    return [Request(code.piece(prompt_tokens), new_tokens) for _ in range(count)]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"
