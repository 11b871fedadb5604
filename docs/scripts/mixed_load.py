"""A backend without HTTP: mixed requests submitted together against the same requests one by one.

    python docs/scripts/mixed_load.py ARTIFACT [--requests 16] [--repeats 3] [--temperature 0] [--seed 1] ...

Prompts are windows of the standard library's source; lengths and new tokens are drawn evenly on a log scale, and
end tokens are ignored, so both ways generate the same number of tokens. The two ways alternate, together first.
Prints one JSON object: seconds of each repeat, medians, and their ratio (above 1: together is faster).
"""

import argparse
import json
import math
import os
import random
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from pangu_convert.artifact import read_artifact
from pangu_convert.code_text import library_file, library_files
from pangu_server.backends import load_backend
from pangu_server.backends.seam import Backend, LoadOptions, SamplingOptions, TokenLogprobs

Request = tuple[list[int], SamplingOptions]


class Waiter:
    """A listener that knows when the first token came and when the end."""

    def __init__(self) -> None:
        self.submitted, self.first = time.perf_counter(), math.nan
        self.error: Exception | None = None
        self.ended = threading.Event()

    def on_start(self) -> None:
        """See `Listener`."""

    def on_prompt(self, logprobs: Sequence[TokenLogprobs | None]) -> None:
        """See `Listener`."""

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """See `Listener`."""
        if math.isnan(self.first):
            self.first = time.perf_counter()
        return False

    def on_end(self, error: Exception | None) -> None:
        """See `Listener`."""
        self.error = error
        self.ended.set()

    def wait(self) -> float:
        """Seconds to the first token."""
        self.ended.wait()
        if self.error is not None:
            raise self.error
        return self.first - self.submitted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=[16, 512], metavar=("LOW", "HIGH"))
    parser.add_argument("--new-tokens", type=int, nargs=2, default=[8, 128], metavar=("LOW", "HIGH"))
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, help="of the requests' sampling")
    arguments = parser.parse_args()
    artifact = read_artifact(arguments.artifact)
    batches: list[int] = []
    options = LoadOptions(
        threads=arguments.threads, max_batch=arguments.max_batch, on_batch=lambda rows: batches.append(rows)
    )
    requests = draw(arguments, Tokenizer.from_file(str(artifact.path / "tokenizer.json")))
    backend = load_backend(artifact, options)
    together, apart, first_tokens = [], [], []
    run(backend, requests[:1])
    for _ in range(arguments.repeats):
        batches.clear()
        start = time.perf_counter()
        first_tokens += run(backend, requests)
        together.append(time.perf_counter() - start)
        rows = list(batches)
        start = time.perf_counter()
        for request in requests:
            run(backend, [request])
        apart.append(time.perf_counter() - start)
    info = backend.info
    backend.close()
    new_tokens = sum(options.max_tokens for _, options in requests)
    report = {
        "artifact": artifact.manifest.name,
        "backend": info.name,
        "compute_type": info.compute_type,
        "arguments": {name: value for name, value in vars(arguments).items() if name != "artifact"},
        "prompt_tokens": sum(len(prompt) for prompt, _ in requests),
        "new_tokens": new_tokens,
        "together_seconds": [round(seconds, 2) for seconds in together],
        "one_by_one_seconds": [round(seconds, 2) for seconds in apart],
        "ratio": round(statistics.median(apart) / statistics.median(together), 2),
        "together_tokens_per_second": round(new_tokens / statistics.median(together), 1),
        "one_by_one_tokens_per_second": round(new_tokens / statistics.median(apart), 1),
        "together_first_token_seconds": {
            "median": round(statistics.median(first_tokens), 2),
            "max": round(max(first_tokens), 2),
        },
        "last_batches": rows,
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }
    print(json.dumps(report))


def draw(arguments: argparse.Namespace, tokenizer: Tokenizer) -> list[Request]:
    """The same requests for the same arguments and tokenizer."""
    source = random.Random(0)

    def length(low: int, high: int) -> int:
        return round(math.exp(source.uniform(math.log(low), math.log(high))))

    requests = []
    for path in source.sample(library_files(), arguments.requests):
        ids = tokenizer.encode(library_file(path)).ids
        prompt = (ids * arguments.prompt_tokens[1])[
            : length(*arguments.prompt_tokens)
        ]  # some files are short
        options = SamplingOptions(
            max_tokens=length(*arguments.new_tokens),
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
        requests.append((prompt, options))
    return requests


def run(backend: Backend, requests: Sequence[Request]) -> list[float]:
    """Submit all, wait for all; seconds to each first token."""
    waiters = []
    for prompt, options in requests:
        waiters.append(Waiter())
        backend.submit(prompt, options, waiters[-1])
    return [waiter.wait() for waiter in waiters]


if __name__ == "__main__":
    main()
