"""Choosing for a batch against the sampler of each completion: in any company, with drafts, after being put back."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grammars import grammar

from pangu_server.backends.sampling import Sampler, token_logprobs
from pangu_server.backends.seam import SamplingOptions
from pangu_server.backends.torch import device_choosing
from pangu_server.backends.torch.choosing import Choosing, choosing_for
from pangu_server.backends.torch.device_choosing import DeviceChoosing
from pangu_server.backends.torch.host_choosing import HostChoosing

VOCABULARY = 700  # more than one block of the sampler's sums
LIKELY = 20  # ids below it are: they come again and again, so penalties decide
ROWS = 4
# Ids are letters, pairs of letters, and more; number 9 ends.
TOKENS = [bytes([97 + token_id % 20]) * (1 + token_id // 20) for token_id in range(VOCABULARY)]
GRAMMAR = grammar(TOKENS, 9, "([a-e]*[f-t]){0,9}")
KINDS = ["host", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]  # the latter two: DeviceChoosing


def make(kind: str) -> Choosing:
    return HostChoosing(VOCABULARY) if kind == "host" else DeviceChoosing(VOCABULARY, ROWS, on(kind))


def on(kind: str) -> torch.device:
    return torch.device("cuda" if kind == "cuda" else "cpu")


def options(**values: Any) -> SamplingOptions:
    wanted = SamplingOptions(**{"max_tokens": 99, "seed": 1, **values})
    if wanted.constraint is not None:  # the grammar says where an answer ends
        wanted = dataclasses.replace(wanted, min_tokens=0, end_token_ids=(9,))
    return wanted


def random_logits(rows: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(0, 2, (rows, VOCABULARY))
    values[:, :LIKELY] = values[:, :LIKELY] / 2 + 6
    return torch.from_numpy(values).to(dtype)


def numbers(row: torch.Tensor) -> Any:
    return row.float().cpu().numpy()


some_options = st.builds(
    options,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.8]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    top_k=st.sampled_from([0, 1, 5, 50, VOCABULARY, 2 * VOCABULARY]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    seed=st.integers(0, 2**64 - 1),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    logit_bias=st.sampled_from([(), ((3, 5.0), (VOCABULARY - 1, -100.0))]),
    min_tokens=st.sampled_from([0, 3]),
    end_token_ids=st.sampled_from([(), (3, 9)]),
    constraint=st.sampled_from([None, None, GRAMMAR]),
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


class Run:
    """A completion: what it has, and the sampler that says what it must get."""

    def __init__(self, wanted: SamplingOptions, prompt_ids: list[int]) -> None:
        self.options, self.prompt_ids, self.generated = wanted, prompt_ids, list[int]()
        self.sampler = Sampler(prompt_ids, wanted)

    def take(self, logits: torch.Tensor) -> int:
        self.generated.append(self.sampler(numbers(logits)))
        return self.generated[-1]


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(some_options, min_size=1, max_size=7), dtypes, st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_a_batch_draws_what_each_sampler_draws(
    kind: str, wanted: list[SamplingOptions], dtype: torch.dtype, seed: int
) -> None:
    randomly = random.Random(seed)
    choosing = make(kind)
    waiting = [Run(each, randomly.choices(range(LIKELY), k=5)) for each in wanted]
    seated: dict[int, Run] = {}
    drawn = differing = 0
    for step in range(12):
        for slot in randomly.sample(sorted(seated), randomly.randint(0, 1) if seated else 0):  # put back
            choosing.leave(slot)
            waiting.append(seated.pop(slot))
        for slot in randomly.sample(range(ROWS), ROWS):
            if waiting and slot not in seated:
                run = waiting.pop(randomly.randrange(len(waiting)))
                choosing.join(slot, run.prompt_ids, run.generated, run.options)
                seated[slot] = run
        slots = randomly.sample(sorted(seated), randomly.randint(1, len(seated)))
        logits = random_logits(len(slots), seed + step, dtype).to(on(kind))
        tokens = choosing.choose(logits, slots, [len(seated[slot].generated) for slot in slots]).tolist()
        expected = [seated[slot].take(logits[row]) for row, slot in enumerate(slots)]
        choosing.accept(slots, torch.tensor(expected, device=on(kind)))
        drawn += len(slots)
        differing += sum(ours != theirs for ours, theirs in zip(tokens, expected, strict=True))
    # The host's are the sampler's own. A device rounds otherwise, which matters once in some 100 000 draws.
    assert differing <= (0 if kind == "host" else 1), f"{differing} of {drawn}"


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(some_options, min_size=1, max_size=ROWS), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=40)
def test_a_draft_is_verified_as_if_token_by_token(
    kind: str, wanted: list[SamplingOptions], seed: int, data: st.DataObject
) -> None:
    together, single = make(kind), make(kind)
    for slot, each in enumerate(wanted):
        for choosing in (together, single):
            choosing.join(slot, [1, 2, 3], [4, 5], each)
    drafts = [data.draw(st.lists(st.integers(0, LIKELY), max_size=4)) for _ in wanted]
    slots = [slot for slot, draft in enumerate(drafts) for _ in range(len(draft) + 1)]
    draws = [2 + place for draft in drafts for place in range(len(draft) + 1)]
    given = torch.tensor([token_id for draft in drafts for token_id in (5, *draft)], device=on(kind))
    logits = random_logits(len(slots), seed).to(on(kind))
    tokens = together.choose(logits, slots, draws, given).tolist()
    assert together.choose(logits, slots, draws, given).tolist() == tokens, "it changes nothing"
    for row, (slot, draw) in enumerate(zip(slots, draws, strict=True)):
        if draw > 2:
            single.accept([slot], given[row : row + 1])
        assert single.choose(logits[row : row + 1], [slot], [draw]).tolist() == [tokens[row]]


@pytest.mark.parametrize("kind", KINDS)
def test_several_tokens_of_one_slot_are_accepted_at_once(kind: str) -> None:
    wanted = options(temperature=0, frequency_penalty=1.0)
    choosing, sampler = make(kind), Sampler([], wanted, [7, 7, 8])
    choosing.join(2, [], [], wanted)
    choosing.accept([2, 2, 2], torch.tensor([7, 7, 8], device=on(kind)))
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [7, 8, 9]] = torch.tensor([3.5, 2.8, 1.6])
    assert choosing.choose(logits.to(on(kind)), [2], [3]).tolist() == [sampler(numbers(logits[0]))] == [8]


@pytest.mark.parametrize("kind", KINDS)
def test_unseeded_completions_draw_independently(kind: str) -> None:
    choosing = make(kind)
    for slot in (0, 1):
        choosing.join(slot, [], [], options(seed=None))
    logits = torch.zeros(2, VOCABULARY, device=on(kind))
    first, second = zip(*(choosing.choose(logits, [0, 1], [d, d]).tolist() for d in range(20)), strict=True)
    assert first != second


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_likeliest_tokens_is_an_argmax(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choosing = make(kind)
    choosing.join(0, [], [], options(temperature=0))
    choosing.join(1, [], [], options(temperature=0.7, top_k=1))
    choosing.join(2, [], [], options(temperature=0.7))
    assert choosing.plain([0, 1])
    assert not choosing.plain([0, 2])

    def upload(*_: Any) -> Any:
        raise AssertionError("nothing has to be sent to the device")

    monkeypatch.setattr(device_choosing, "upload", upload)
    logits = random_logits(2, 0, torch.bfloat16).to(on(kind))
    tokens = choosing.choose(logits, [1, 0], [0, 5])
    choosing.accept([1, 0], tokens)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [int(numbers(row).argmax()) for row in logits]


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.lists(st.sampled_from([None, 0, 1, 5, VOCABULARY + 1]), min_size=1, max_size=4),
    dtypes,
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_logprobs_are_those_of_each_row(
    kind: str, tops: Sequence[int | None], dtype: torch.dtype, seed: int
) -> None:
    logits = random_logits(len(tops), seed, dtype).to(on(kind))  # many of bfloat16 are equal
    logits[:, ::7] = -0.0
    logits[:, ::11] = 0.0
    tokens = torch.tensor([seed % VOCABULARY] * len(tops), device=on(kind))
    told = make(kind).logprobs(logits, tokens, tops).read()
    for row, top in enumerate(tops):
        if top is None:
            assert told[row] is None
            continue
        ours, theirs = told[row], token_logprobs(numbers(logits[row]), seed % VOCABULARY, top)
        assert ours is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-6)
        assert [token_id for token_id, _ in ours.top] == [token_id for token_id, _ in theirs.top]
        assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wanted",
    [
        {"logit_bias": ((VOCABULARY, 1.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"min_tokens": 1, "end_token_ids": (VOCABULARY,)},
    ],
)
def test_a_token_that_the_logits_do_not_have_is_refused(kind: str, wanted: dict[str, Any]) -> None:
    with pytest.raises(IndexError, match="not one of the model's 700"):
        make(kind).join(0, [], [], options(**wanted))


def test_a_cpu_asks_the_sampler_itself() -> None:
    assert isinstance(choosing_for(VOCABULARY, ROWS, torch.device("cpu")), HostChoosing)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_never_waits_for_a_gpu() -> None:
    choosing = choosing_for(VOCABULARY, ROWS, torch.device("cuda"))
    logits = random_logits(ROWS + 1, 0).cuda()
    slots, draws, given = [0, 1, 2, 3, 3], [2, 2, 2, 2, 3], torch.arange(ROWS + 1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        choosing.join(0, [1, 2], [3, 4], options(temperature=0))
        choosing.join(1, [1, 2], [3, 4], options(top_k=5, top_p=0.9, min_p=0.1, logit_bias=((1, 2.0),)))
        choosing.join(2, [1, 2], [3, 4], options(min_tokens=9, end_token_ids=(1,)))
        choosing.join(3, [1, 2], [3, 4], options(repetition_penalty=1.2, frequency_penalty=0.3))
        tokens = choosing.choose(logits, slots, draws, given)
        choosing.accept(slots, tokens)
        logprobs = choosing.logprobs(logits, tokens, [None, 0, 3, 3, None])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [entry is not None for entry in logprobs.read()] == [False, True, True, True, False]
