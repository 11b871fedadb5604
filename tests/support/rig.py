"""The torch engine's schedule over a tiny model, and what transformers itself says of that model."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pangu_server.backends.seam import SamplingOptions
from pangu_server.backends.torch.cache import PAGE_TOKENS, CpuCache, PagedCache
from pangu_server.backends.torch.choosing import Choosing, choosing_for
from pangu_server.backends.torch.continuous import ContinuousSchedule
from pangu_server.backends.torch.drafting import Costs
from pangu_server.backends.torch.runner import Runner, heads_of
from support.collector import Collector
from support.reference import generated
from support.tiny import tiny_config

CONTEXT_TOKENS = 512  # of the tiny models here; more than two pieces of a prompt
VOCABULARY = 300  # of the ids that prompts are made of
MAX_BATCH = 4


def tiny_model(architecture: str, folder: Path) -> Path:
    """A random checkpoint in float32, without a tokenizer."""
    length = "n_positions" if architecture == "gpt_bigcode" else "max_position_embeddings"
    torch.manual_seed(1)
    config = tiny_config(architecture, 400, **{length: CONTEXT_TOKENS})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


class Rig:
    """A model, its schedule, and what transformers says."""

    def __init__(
        self,
        folder: Path,
        pages: int = 4 * CONTEXT_TOKENS // PAGE_TOKENS,
        cache: Callable[..., PagedCache] = CpuCache,
        choosing: Callable[..., Choosing] = choosing_for,
    ) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.repetition_penalty = 1.0
        self.batches: list[int] = []
        served = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        pages_ = cache(
            heads_of(served),
            pages,
            MAX_BATCH,
            CONTEXT_TOKENS // PAGE_TOKENS + 1,
            torch.float32,
            served.device,
        )
        self.costs = Costs()
        self.runner = Runner(served, pages_)
        self.schedule = ContinuousSchedule(
            self.runner,
            choosing(served.config.vocab_size, MAX_BATCH, served.device),
            max_batch=MAX_BATCH,
            on_batch=self.batches.append,
            costs=self.costs,
        )
        self.schedule.start()

    def submit(self, prompt: list[int], listener: Collector | None = None, **options: Any) -> Collector:
        listener = listener or Collector()
        self.schedule.submit(prompt, SamplingOptions(**{"temperature": 0, **options}), listener)
        return listener

    def run(self, prompt: list[int], **options: Any) -> Collector:
        return finished(self.submit(prompt, **options))

    def expected(self, prompt: list[int], count: int) -> list[int]:
        """transformers' own greedy tokens."""
        return generated(self.model, prompt, count)

    def logs(self, tokens: list[int]) -> torch.Tensor:
        """transformers' own log-probabilities (tokens, vocabulary)."""
        with torch.inference_mode():
            logs: torch.Tensor = self.model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
        return logs


def finished(listener: Collector) -> Collector:
    assert listener.ended.wait(120)
    assert listener.error is None
    return listener


def prompt_of(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, VOCABULARY) for _ in range(length)]


def repeating(rig: Rig, count: int = 40) -> tuple[list[int], list[int]]:
    """A prompt that holds what the model will answer, and the answer."""
    prompt = prompt_of(40)
    answer = rig.expected(prompt, count)
    prompt = [*prompt, *answer, *prompt]
    return prompt, rig.expected(prompt, count)
