"""What a grammar costs: an engine's seconds a token with one beside those without, taking turns in one run.

    python docs/scripts/grammar_overhead.py ARTIFACT --engine torch --rounds 10

`any` allows every text, so its tokens are those without a grammar. `json` is a schema's answer. Ratios are of the
process's computing time: other work on the machine does not change it much. Ends with one JSON object.
"""

import argparse
import asyncio
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from pangu_convert.artifact import read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.seam import Backend, Constraint, LoadOptions, SamplingOptions, TokenLogprobs
from pangu_server.encoding import read_tokenizer
from pangu_server.grammar.compiling import Grammars
from pangu_server.grammar.wanted import Wanted

CODE = "def quicksort(items):\n    "
PERSON = "# The person Ada Lovelace, aged 36, and her languages, as JSON:\n"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "languages": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 5},
    },
    "required": ["name", "age", "languages"],
    "additionalProperties": False,
}


class Clock:
    """A listener that notes when each token came."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.computed: list[float] = []
        self.ended = threading.Event()

    def on_start(self) -> None:
        """See `Listener`."""

    def on_prompt(self, logprobs: Any) -> None:
        """See `Listener`."""

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """See `Listener`."""
        self.tokens.append(token_id)
        self.times.append(time.perf_counter())
        self.computed.append(time.process_time())
        return False

    def on_end(self, error: Exception | None) -> None:
        """See `Listener`."""
        self.ended.set()


def resident_megabytes() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def answer(backend: Backend, prompt: list[int], options: SamplingOptions) -> Clock:
    """One answer, alone on the engine."""
    clock = Clock()
    backend.submit(prompt, options, clock)
    clock.ended.wait()
    return clock


def masks(constraint: Constraint, tokens: list[int], ends: tuple[int, ...]) -> list[float]:
    """Seconds that each token of an answer takes the grammar itself."""
    matcher, seconds = constraint.matcher(ends), []
    for token_id in tokens:
        started = time.perf_counter()
        matcher.allowed()
        matcher.accept(token_id)
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--engine", choices=["torch", "ctranslate2"], default="torch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    artifact = read_artifact(arguments.artifact)
    tokenizer, ends = read_tokenizer(artifact), artifact.manifest.end_token_ids
    backend = load_backend(
        artifact,
        LoadOptions(device=arguments.device, engine=arguments.engine, threads=arguments.threads, draft="off"),
    )
    size = backend.info.vocabulary_size
    assert size is not None
    grammars = Grammars(tokenizer, ends, lambda: size)

    def compiled(kind: Any, value: Any) -> tuple[Constraint, float]:
        started = time.perf_counter()
        constraint = asyncio.run(grammars.compile(Wanted(kind=kind, value=value, param="grammar")))
        return constraint, time.perf_counter() - started

    before = resident_megabytes()
    anything, first_seconds = compiled("regex", "(?s:.)*")
    held = resident_megabytes() - before
    schema, compile_seconds = compiled("json_schema", SCHEMA)
    _, again_seconds = compiled("json_schema", SCHEMA)
    cases = {
        "plain": (CODE, None),
        "any": (CODE, anything),
        "json plain": (PERSON, None),
        "json": (PERSON, schema),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    computed: dict[str, list[float]] = {name: [] for name in cases}
    tokens: dict[str, list[int]] = {}
    for round_ in range(arguments.rounds + 1):  # the first warms up
        for name, (prompt, constraint) in cases.items():
            options = SamplingOptions(
                max_tokens=arguments.tokens,
                temperature=0,
                end_token_ids=ends if constraint else (),
                constraint=constraint,
            )
            clock = answer(backend, tokenizer.encode(prompt).ids, options)
            tokens[name] = clock.tokens
            if round_:
                steps = len(clock.tokens) - 1
                seconds[name].append((clock.times[-1] - clock.times[0]) / steps)
                computed[name].append((clock.computed[-1] - clock.computed[0]) / steps)
        print(
            f"round {round_}: " + ", ".join(f"{name} {len(tokens[name])} tokens" for name in cases),
            flush=True,
        )
    assert tokens["any"] == tokens["plain"], "a grammar that allows everything changes nothing"
    mask = masks(schema, tokens["json"], ends)
    ratio = {
        name: round(statistics.median(computed[name]) / statistics.median(computed[plain]), 3)
        for name, plain in (("any", "plain"), ("json", "json plain"))
    }
    print(
        json.dumps(
            {
                "artifact": artifact.manifest.name,
                "engine": backend.info.engine,
                "device": backend.info.device,
                "vocabulary": size,
                "first_grammar_seconds": round(first_seconds, 2),
                "first_grammar_mb": round(held),
                "new_grammar_ms": round(1000 * compile_seconds, 1),
                "known_grammar_ms": round(1000 * again_seconds, 1),
                "mask_microseconds_median": round(1e6 * statistics.median(mask)),
                "mask_microseconds_most": round(1e6 * max(mask)),
                "token_ms": {
                    name: round(1000 * statistics.median(values), 2) for name, values in seconds.items()
                },
                "computing_ms": {
                    name: round(1000 * statistics.median(values), 2) for name, values in computed.items()
                },
                "computing_ratio": ratio,
                "json": tokenizer.decode(tokens["json"]),
            }
        )
    )
    grammars.close()
    backend.close()


if __name__ == "__main__":
    main()
