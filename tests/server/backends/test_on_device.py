"""What runs on a GPU, on a CPU: Triton's interpreter, a stand-in for CUDA graphs, steps ahead of the host."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.collector import Collector
from support.grammars import grammar
from support.rig import CONTEXT_TOKENS, Rig, finished, prompt_of, repeating, tiny_model

from pangu_server.backends.seam import SamplingOptions
from pangu_server.backends.torch import runner as runner_module
from pangu_server.backends.torch.cuda_cache import CudaCache
from pangu_server.backends.torch.device_choosing import DeviceChoosing

# Of Triton 3.6 with NumPy 2.2.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


class Replayed:
    """In the place of a CUDA graph: computes the step again on the same tensors."""

    def __init__(self) -> None:
        self.step: Callable[[], None] = lambda: None
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.step()


def capture(rig: Rig, sizes: tuple[int, ...]) -> list[Replayed]:
    """As `Runner.capture`: the tensors of each size are made once, and every replay reads and leaves them."""
    graphs = []
    for size in sizes:
        numbers = torch.zeros((4, size), dtype=torch.long)
        numbers[2] = -1
        graph = Replayed()
        with torch.inference_mode():
            logits = rig.runner._step(numbers)

        def again(numbers: torch.Tensor = numbers, logits: torch.Tensor = logits) -> None:
            logits.copy_(rig.runner._step(numbers))

        graph.step = again
        rig.runner._captured[size] = runner_module._Captured(graph, numbers, logits)
        graphs.append(graph)
    return graphs


@pytest.fixture(scope="module", params=["gpt_bigcode", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def rig(folder: Path) -> Iterator[Rig]:
    rig = Rig(folder, cache=CudaCache, choosing=DeviceChoosing)
    yield rig
    rig.schedule.close()


def test_tokens_are_those_of_generate(rig: Rig) -> None:
    graphs = capture(rig, (1, 2, 4, 8))
    draw = random.Random(1)
    head = prompt_of(40, seed=3)
    prompts = [
        (head[: draw.randrange(1, 40)] + prompt_of(draw.choice([1, 5, 30]), seed=n), 6 + n) for n in range(6)
    ]
    listeners = [rig.submit(prompt, max_tokens=count) for prompt, count in prompts]
    for (prompt, count), listener in zip(prompts, listeners, strict=True):
        assert finished(listener).tokens == rig.expected(prompt, count)
    assert sum(graph.replays for graph in graphs) > 6
    assert rig.schedule.cache_use().used_fraction == 0


def test_a_step_ahead_sends_nothing_behind_the_end(rig: Rig) -> None:
    """Without guesses the next step starts before a token is read: of one that has ended it is dropped."""
    rig.schedule._drafts = False
    assert rig.schedule._ahead
    prompt = prompt_of(20)
    expected = rig.expected(prompt, 12)
    for end in (expected[3], expected[8]):
        tokens = rig.run(prompt, max_tokens=12, end_token_ids=(end,)).tokens
        assert tokens == expected[: expected.index(end) + 1]
    assert rig.run(prompt, max_tokens=12).tokens == expected
    seeded = {"temperature": 0.9, "seed": 5, "repetition_penalty": 1.2, "max_tokens": 10}
    ahead = rig.run(prompt, **seeded).tokens
    rig.schedule._drafts = True
    assert rig.run(prompt, **seeded).tokens == ahead


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_step_ahead_keeps_a_grammar(rig: Rig) -> None:
    tokens = [bytes([97 + token_id % 20]) for token_id in range(400)]
    constraint = grammar(tokens, 9, "([a-e][f-t]){9}")
    rig.schedule._drafts = False
    assert rig.schedule._ahead
    prompt = prompt_of(5)
    confined = rig.submit(prompt, max_tokens=4, temperature=1.0, end_token_ids=(9,), constraint=constraint)
    free = rig.submit(prompt, max_tokens=4)
    text = b"".join(tokens[token_id] for token_id in finished(confined).tokens).decode()
    assert re.fullmatch("([a-e][f-t]){2}", text)
    assert finished(free).tokens == rig.expected(prompt, 4)


def test_guesses_are_verified(rig: Rig) -> None:
    rig.costs.step = lambda tokens: 1 + tokens / 100  # type: ignore[method-assign]
    prompt, answer = repeating(rig, 12)
    listener = Collector()
    options = SamplingOptions(max_tokens=12, temperature=0, prediction=tuple(answer))
    ticket = rig.schedule.submit(prompt, options, listener)
    assert finished(listener).tokens == answer
    assert ticket.accepted > 4


def test_a_full_cache_puts_the_newest_back(folder: Path) -> None:
    rig = Rig(folder, cache=CudaCache, choosing=DeviceChoosing, pages=CONTEXT_TOKENS // 16 + 2)
    rig.schedule._drafts = False
    prompts = [(prompt_of(120 + number, seed=number), 14) for number in range(4)]
    listeners = [rig.submit(prompt, max_tokens=count) for prompt, count in prompts]
    for (prompt, count), listener in zip(prompts, listeners, strict=True):
        assert finished(listener).tokens == rig.expected(prompt, count)
    assert rig.schedule.counts().preemptions > 0
    rig.schedule.close()
