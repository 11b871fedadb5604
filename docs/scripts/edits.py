"""What guesses from the prompt are worth where most of an answer is in the prompt: edits of a given function.

    python docs/scripts/edits.py ARTIFACT [--functions 8] [--new-tokens 256] [--threads 1]

Functions of the standard library, of 12 to 30 lines, each with a request to change a small thing, as chat, greedy, one
at a time, in process: with guesses (`--draft prompt`) and without, in turns. Both must write the same tokens. Prints
a JSON object for each: seconds from the first token to the last, their ratio (above 1: guesses are faster), and how
many tokens were guessed and accepted.
"""

import argparse
import ast
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixed_load import Waiter
from transformers import AutoTokenizer

from pangu_convert.artifact import read_artifact
from pangu_convert.code_text import library_file, library_files
from pangu_server.backends import load_backend
from pangu_server.backends.seam import Backend, LoadOptions, SamplingOptions, TokenLogprobs

EDITS = (
    "Rename the first local variable to `value`. Change nothing else.",
    "Add type annotations to the parameters. Change nothing else.",
    "Add a line that prints the result before each return. Change nothing else.",
    "Write a docstring of one line. Change nothing else.",
)
LINES = range(12, 31)


class Answer(Waiter):
    """A listener that keeps the tokens, and knows when the last one came."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self.last = self.first

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """See `Listener`."""
        self.tokens.append(token_id)
        stopped = super().on_token(token_id, logprobs)
        self.last = time.perf_counter()
        return stopped


def functions() -> Iterator[str]:
    """One of each file."""
    for name in library_files():
        text = library_file(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and not node.col_offset:
                source = ast.get_source_segment(text, node) or ""
                if source.count("\n") + 1 in LINES:
                    yield source
                    break


def timed(backend: Backend, prompt: list[int], options: SamplingOptions) -> tuple[float, list[int], Any]:
    """Seconds behind the first token, the answer, and the request's counts."""
    answer = Answer()
    ticket = backend.submit(prompt, options, answer)
    answer.wait()
    return answer.last - answer.first, answer.tokens, ticket


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--functions", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=256, help="of an answer, at most")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    artifact = read_artifact(arguments.artifact)
    tokenizer = AutoTokenizer.from_pretrained(arguments.artifact, trust_remote_code=False)
    with_guesses, without = (
        load_backend(
            artifact, LoadOptions(device="cpu", threads=arguments.threads, engine="torch", draft=draft)
        )
        for draft in ("prompt", "off")
    )
    options = SamplingOptions(
        max_tokens=arguments.new_tokens, temperature=0, end_token_ids=artifact.manifest.end_token_ids
    )
    rows = []
    for index, source in zip(range(arguments.functions), functions(), strict=False):
        question = (
            f"{EDITS[index % len(EDITS)]} Answer with the whole function only.\n```python\n{source}\n```"
        )
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        both = [with_guesses, without] if index % 2 else [without, with_guesses]
        taken = {id(backend): timed(backend, prompt, options) for backend in both}
        seconds, tokens, ticket = taken[id(with_guesses)]
        plain_seconds, plain_tokens, _ = taken[id(without)]
        if tokens != plain_tokens:
            raise SystemExit(f"function {index}: the answers differ")
        rows.append(
            {
                "prompt_tokens": len(prompt),
                "tokens": len(tokens),
                "seconds": round(seconds, 3),
                "seconds_without": round(plain_seconds, 3),
                "ratio": round(plain_seconds / seconds, 2),
                "guessed": ticket.drafted,
                "accepted": ticket.accepted,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    ratios = [row["ratio"] for row in rows]
    print(json.dumps({"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}))
    with_guesses.close()
    without.close()


if __name__ == "__main__":
    main()
