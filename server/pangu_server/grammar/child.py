"""The process that reads a client's grammar before the server does. Started as a script; knows llguidance only.

A grammar can make the library compute for hours, take all memory, or overflow its stack, which ends a process. Here
that ends nothing but this one, which has a bound for each. A line of JSON in, a line of JSON out, until the input ends.
"""

import json
import re
import resource
import signal
import sys
import threading
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

CPU_SECONDS = 1.0  # a grammar
MEMORY_BYTES = 1 << 30  # of addresses: far above what the library takes for itself
# An eighth of what a thread of the server has: what fits here does not overflow there.
STACK_BYTES = 1 << 20
# As llama.cpp: a space, or a new line with an indent. Without a bound small models write blanks to the end.
JSON_WHITESPACE = r"( |\n[ \t]{0,20})?"
# The model chooses how a text that is the only possible one is cut into tokens.
UNFORCED = '%llguidance {"no_forcing": true}'
# A half to a fifth of the library's own: one step takes tens of milliseconds at most, and a matcher 100 MB.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
END = 256  # behind the bytes


class Bytes:
    """A vocabulary of all bytes and an end, in the form that `LLTokenizer` takes."""

    is_tokenizer_wrapper = True
    eos_token_id = END
    bos_token_id = None

    def __init__(self) -> None:
        self.tokens = [*(bytes([byte]) for byte in range(END)), b"<end>"]
        self.special_token_ids = [END]

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids of a text."""
        return list(text.encode() if isinstance(text, str) else text)


def written(kind: str, value: Any, whitespace: str | None) -> str:
    """The grammar in Lark's form, as llguidance has it.

    Raises:
        ValueError: it is not one; says why.
    """
    if kind == "json_schema":
        text = f"start: %json {schema_of(value, whitespace)}"
    elif kind == "regex":
        text = f"start: /{regex_to_lark(value, '')}/"
    elif kind == "choice":
        text = "start: " + " | ".join(json.dumps(one) for one in value)
    else:
        text = any_to_lark(unescaped(value))
    return f"{text}\n{UNFORCED}\n"


def schema_of(value: Any, whitespace: str | None) -> str:
    """A JSON schema, or its text, with what may stand between the tokens of JSON."""
    schema = json.loads(value) if isinstance(value, str) else value
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        own = {} if whitespace is None else {"whitespace_pattern": whitespace}
        schema["x-guidance"] = {"whitespace_pattern": JSON_WHITESPACE, **schema.get("x-guidance", {}), **own}
    return json.dumps(schema)


def unescaped(text: str) -> str:
    r"""GBNF with the character itself for `\u00e9`, which the library's converter reads wrongly."""

    def character(match: re.Match[str]) -> str:
        code = int(match[1] or match[2] or "0", 16)
        plain = code >= 0xA0 and not 0xD800 <= code < 0xE000 and code <= sys.maxunicode
        return chr(code) if plain else match[0]

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", character, text)


def check(tokenizer: LLTokenizer, asked: dict[str, Any]) -> dict[str, str]:
    """`{"grammar": …}`, or `{"error": …}` with the library's reason."""
    try:
        grammar = written(asked["kind"], asked["value"], asked["whitespace"])
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        if not matcher.is_error():
            matcher.compute_bitmask()
    except Exception as error:  # the converter raises its own kinds
        return {"error": str(error) or type(error).__name__}
    return {"error": reason(matcher)} if matcher.is_error() else {"grammar": grammar}


def reason(matcher: LLMatcher) -> str:
    """Why the matcher is in error, without the excerpts of the grammar."""
    said, *_ = re.split(r"\n\s*\d+ \| |\n<", matcher.get_error())
    said = re.sub(
        r"^at 1\(8\): (failed to compile JSON schema: |invalid regex .*? \(in regex\): )?",
        "",
        said,
        flags=re.S,
    )
    return "nothing matches it" if said.startswith("NoExtension") else said


def main() -> None:
    """Answer each line of standard input."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.stack_size(STACK_BYTES)
    tokenizer = LLTokenizer(Bytes(), eos_token=[END])  # type: ignore[arg-type]
    for line in sys.stdin:
        answers: list[dict[str, str]] = []

        def answer(line: str = line, answers: list[dict[str, str]] = answers) -> None:
            answers.append(check(tokenizer, json.loads(line)))

        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        thread = threading.Thread(target=answer)
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answers[0] if answers else {"error": "it is nested too deeply"}), flush=True)


if __name__ == "__main__":
    main()
