"""Grammars on both engines: answers match, and are those of transformers' logits under the grammar."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.collector import Collector
from support.grammars import Compiler, grammar
from support.rig import Rig, finished, prompt_of, tiny_model

from pangu_convert.artifact import Artifact, read_artifact
from pangu_server.backends import load_backend
from pangu_server.backends.sampling import Sampler, bits
from pangu_server.backends.seam import Backend, Constraint, EngineName, LoadOptions, SamplingOptions
from pangu_server.backends.torch.choosing import choosing_for
from pangu_server.backends.torch.device_choosing import DeviceChoosing
from pangu_server.encoding import read_tokenizer

ENGINES: tuple[EngineName, ...] = ("torch", "ctranslate2")
PROMPT = list(b"def add(a, b):\n    return")


class Served:
    """One model on both engines, and a compiler of grammars for it."""

    def __init__(self, artifacts: dict[EngineName, Artifact]) -> None:
        self.tokenizer = read_tokenizer(artifacts["torch"])
        self.ends = artifacts["torch"].manifest.end_token_ids
        self.backends: dict[EngineName, Backend] = {
            engine: load_backend(artifact, LoadOptions(device="cpu", engine=engine, max_batch=4))
            for engine, artifact in artifacts.items()
        }
        size = self.backends["torch"].info.vocabulary_size
        assert size is not None
        assert size == self.backends["ctranslate2"].info.vocabulary_size
        self.size, self.compile = size, Compiler(self.tokenizer, self.ends, size)

    def run(self, engine: EngineName, constraint: Constraint, **values: Any) -> list[int]:
        """The tokens of an answer, each of which the grammar allows where it stands."""
        options = SamplingOptions(
            **{"max_tokens": 40, "end_token_ids": self.ends, "constraint": constraint, **values}
        )
        listener = Collector()
        self.backends[engine].submit(PROMPT, options, listener)
        tokens = finished(listener).tokens
        matcher = constraint.matcher(self.ends)
        for token_id in tokens:
            allowed = matcher.allowed()
            assert allowed is not None
            assert bits(allowed, self.size)[token_id]
            assert matcher.accept(token_id)
        return tokens

    def text(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """The text of these tokens, and whether it is complete."""
        complete = tokens[-1] in self.ends
        raw = b"".join(self.vocabulary[token_id] for token_id in tokens[: len(tokens) - complete])
        return raw.decode(errors="replace"), complete

    @property
    def vocabulary(self) -> list[bytes]:
        return [bytes([byte]) for byte in range(256)]

    def close(self) -> None:
        self.compile.close()
        for backend in self.backends.values():
            backend.close()


@pytest.fixture(scope="module")
def served(converted: Callable[..., Path]) -> Iterator[Served]:
    ours = converted("qwen2", "transformers", "--dtype", "float32")
    theirs = converted("qwen2", "ctranslate2", "--quantization", "float32")
    served = Served({"torch": read_artifact(ours), "ctranslate2": read_artifact(theirs)})
    yield served
    served.close()


leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        *[st.integers(0, 99)] * 2,
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 4)),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.sampled_from(["a", 7, None, "é"]), min_size=1, unique=True),
    ),
)


def branches(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def record(properties: dict[str, Any], required: set[str]) -> dict[str, Any]:
        names = sorted(required & properties.keys())
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}

    keys = st.sampled_from(["x", "name", 'q"'])
    return st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, inner),
        st.builds(record, st.dictionaries(keys, inner, max_size=2), st.sets(keys)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
    )


schemas = st.recursive(leaves, branches, max_leaves=3)
regexes = st.sampled_from(
    [
        "[a-f]{3,9}",
        "(ab|c)*d",
        "x?(é|ü)+",
        r"\d{2}-\d{2}",
        "a|bc|",
        r"(https?://)?[a-z0-9]{1,9}\.com",
        "[^a]{2}b",
    ]
)
drawings = st.sampled_from(
    [
        {"temperature": 0},
        {"temperature": 1.5},
        {"temperature": 1.0, "seed": 5, "top_p": 0.9, "top_k": 40},
        {"temperature": 0, "frequency_penalty": 1.0, "logprobs": 2},
        {"temperature": 2.0, "min_p": 0.1, "logit_bias": ((97, 5.0),)},
    ]
)


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Whether `value` is what one of `schemas` says."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(option, value) for option in schema["anyOf"])
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "array":
            return (
                isinstance(value, list)
                and len(value) <= 2
                and all(fits(schema["items"], one) for one in value)
            )
    properties = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= value.keys() <= properties.keys()
        and all(fits(properties[name], one) for name, one in value.items())
    )


@pytest.mark.parametrize("engine", ENGINES)
@given(schema=schemas, drawing=drawings)
@settings(max_examples=12, deadline=None)
def test_what_is_complete_is_what_the_schema_says(
    served: Served, engine: EngineName, schema: dict[str, Any], drawing: dict[str, Any]
) -> None:
    text, complete = served.text(served.run(engine, served.compile("json_schema", schema), **drawing))
    assert not complete or fits(schema, json.loads(text)), text


@pytest.mark.parametrize("engine", ENGINES)
@given(pattern=regexes, drawing=drawings)
@settings(max_examples=12, deadline=None)
def test_what_is_complete_matches_the_regex(
    served: Served, engine: EngineName, pattern: str, drawing: dict[str, Any]
) -> None:
    text, complete = served.text(served.run(engine, served.compile("regex", pattern), **drawing))
    assert not complete or re.fullmatch(pattern, text), text


def test_both_engines_give_the_same_greedy_answer(served: Served) -> None:
    for kind, value in (
        ("json_schema", {"type": "array", "items": {"type": "integer"}}),
        ("regex", "[a-z ]{30}"),
    ):
        constraint = served.compile(kind, value)
        ours, theirs = (served.run(engine, constraint, temperature=0) for engine in ENGINES)
        assert ours == theirs


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_with_and_without_a_grammar_run_together(served: Served, engine: EngineName) -> None:
    backend, constraint = served.backends[engine], served.compile("choice", ["yes", "no"])
    plain = SamplingOptions(max_tokens=12, temperature=0, end_token_ids=served.ends)
    alone = Collector()
    backend.submit(PROMPT, plain, alone)
    finished(alone)
    together = [Collector() for _ in range(4)]
    chosen = SamplingOptions(max_tokens=12, temperature=0, end_token_ids=served.ends, constraint=constraint)
    for index, listener in enumerate(together):
        backend.submit(PROMPT, chosen if index % 2 else plain, listener)
    for index, listener in enumerate(together):
        tokens = finished(listener).tokens
        assert served.text(tokens) in [("yes", True), ("no", True)] if index % 2 else tokens == alone.tokens


# ------------------------------------------------------------------ the torch engine, step by step

TOKENS = [bytes([97 + token_id % 20]) * (1 + token_id // 20 % 3) for token_id in range(400)]
END = 9
PATTERN = "(a{1,4}[b-t]{2,5}){30,60}"


@pytest.fixture(scope="module", params=["host", "device"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tiny_model("llama", tmp_path_factory.mktemp("tiny"))
    rig = Rig(folder, pages=34, choosing=DeviceChoosing if request.param == "device" else choosing_for)
    yield rig
    rig.schedule.close()


def expected(rig: Rig, prompt: list[int], options: SamplingOptions) -> list[int]:
    """The answer by transformers' logits, one forward for each token, and the sampler."""
    sampler, tokens = Sampler(prompt, options), list(prompt)
    while len(tokens) - len(prompt) < options.max_tokens:
        with torch.inference_mode():
            logits = rig.model(torch.tensor([tokens])).logits[0, -1].float().numpy()
        tokens.append(sampler(np.asarray(logits)))
        if tokens[-1] in options.end_token_ids:
            break
    return tokens[len(prompt) :]


def test_drafts_are_checked_against_the_grammar(rig: Rig) -> None:
    constraint = grammar(TOKENS, END, PATTERN)
    options = SamplingOptions(max_tokens=24, temperature=0, end_token_ids=(END,), constraint=constraint)
    prompt = prompt_of(40)
    answer = expected(rig, prompt, options)
    rig.costs.learn(1, 1.0)
    rig.costs.learn(9, 1.1)  # guesses pay
    for guess, right in (answer, True), ([*answer[:5], 0, *answer[5:9], 399, 0, END], False):
        before = rig.schedule.counts()
        listener = rig.submit(
            prompt, max_tokens=24, end_token_ids=(END,), constraint=constraint, prediction=tuple(guess)
        )
        assert finished(listener).tokens == answer
        drafted = rig.schedule.counts().drafted - before.drafted
        accepted = rig.schedule.counts().accepted - before.accepted
        assert 0 < accepted <= drafted
        assert (accepted == drafted) == right


def test_a_completion_that_was_put_back_goes_on_in_its_grammar(rig: Rig) -> None:
    constraint = grammar(TOKENS, END, PATTERN)
    prompts = [prompt_of(150, seed) for seed in range(4)]
    options = SamplingOptions(
        max_tokens=60, temperature=1.0, seed=3, end_token_ids=(END,), constraint=constraint
    )
    before = rig.schedule.counts().preemptions
    listeners = [
        rig.submit(
            prompt, max_tokens=60, temperature=1.0, seed=3, end_token_ids=(END,), constraint=constraint
        )
        for prompt in prompts
    ]
    for prompt, listener in zip(prompts, listeners, strict=True):
        assert finished(listener).tokens == expected(rig, prompt, options)
    assert rig.schedule.counts().preemptions > before


def test_a_dead_grammar_ends_its_own_completion_only(rig: Rig) -> None:
    class Nothing:
        """A grammar that took too much."""

        over = False

        def matcher(self, end_token_ids: Sequence[int]) -> "Nothing":
            return self

        def accept(self, token_id: int) -> bool:
            return False

        def allowed(self, assumed: Sequence[int] = ()) -> bytes | None:
            return None

    prompt = prompt_of(20)
    dead = rig.submit(prompt, max_tokens=9, end_token_ids=(END,), constraint=Nothing())
    other = rig.submit(prompt, max_tokens=9)
    assert finished(dead).tokens == [END]
    assert finished(other).tokens == rig.expected(prompt, 9)
