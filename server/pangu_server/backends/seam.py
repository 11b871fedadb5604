"""The seam between the engine and a model: token ids in, token ids out.

A backend owns its scheduling and runs on threads of its own. No HTTP, no text and no tensors cross here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Device = Literal["auto", "cpu", "cuda"]
EngineName = Literal["torch", "ctranslate2"]
EngineChoice = Literal["auto", EngineName]
Draft = Literal["prompt", "off"]


class Matcher(Protocol):
    """Follows one completion through its grammar."""

    @property
    def over(self) -> bool:
        """Whether the text is complete, and nothing but an end token may come."""

    def accept(self, token_id: int) -> bool:
        """This is the next token; False: it may not be, and from now on nothing may."""

    def allowed(self, assumed: Sequence[int] = ()) -> bytes | None:
        """Which tokens may come next, if `assumed` come before: bit i % 8 of byte i // 8 is for token i.

        End tokens may where the text is complete. None: nothing may, or it takes too much to tell.
        """


class Constraint(Protocol):
    """A grammar that is ready to be followed. The completions of a request share it."""

    def matcher(self, end_token_ids: Sequence[int]) -> Matcher:
        """A completion's own, at the beginning. Any thread, one at a time, may use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How one completion is drawn. The defaults change nothing."""

    max_tokens: int  # 0: only the prompt is looked at
    min_tokens: int = 0  # no end token before these
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # in (0, 1]
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0  # of the best token's probability
    seed: int | None = None  # the same seed draws the same tokens
    presence_penalty: float = 0.0  # both on generated tokens, as OpenAI defines them
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # on prompt and generated tokens (CTRL, section 4.1)
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    end_token_ids: tuple[int, ...] = ()  # generation stops after any of these
    logprobs: int | None = None  # report each new token's log-probability, and of this many best ones
    prompt_logprobs: int | None = None  # the same for the prompt's tokens, before the first new one
    prediction: tuple[
        int, ...
    ] = ()  # tokens that the answer is likely to hold: drafts, never part of the answer
    adapter: str | None = None  # one of `LoadOptions.adapters`; None: the model as it is
    constraint: Constraint | None = None  # the answer is what it allows


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, by the model alone: before temperature, penalties and bias."""

    logprob: float  # of the token that is there
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability) of the best ones, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How an artifact is loaded."""

    device: Device = "auto"
    threads: int = 1  # compute threads on a CPU
    max_batch: int = 16  # completions that are generated together at most
    engine: EngineChoice = "auto"  # auto: what measures best on this device
    cache_bytes: int | None = (
        None  # for keys and values; None: what the device has left, a share of it on a CPU
    )
    graphs: bool = True  # capture decode steps as CUDA graphs
    adapters: tuple[tuple[str, Path], ...] = ()  # LoRA adapters that requests can name: (name, folder)
    draft: Draft = "prompt"  # guess tokens from the prompt and verify several in one step
    on_batch: Callable[[int], None] = lambda rows: None  # told the rows of each batch or step that runs


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What runs after loading, which can differ from what the artifact asks for."""

    name: str
    engine: EngineName
    device: str
    compute_type: str
    weight_bytes: int  # of the weights in memory where the library tells, else of the files
    threads: int
    max_batch: int = 1
    vocabulary_size: int | None = None  # rows of the embedding: token ids are below it
    kernel: str | None = None  # what multiplies quantized matrices, where there is a choice
    why: str = ""  # this engine, where there was a choice
    caution: str | None = None  # why answers can be worse on this machine than the artifact's scores say


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """The attention keys and values that a backend holds now."""

    held_bytes: int  # computed from shapes where the library does not tell
    used_fraction: float  # of what `max_batch` completions of full context would hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a backend has counted since it was loaded. Names of metrics are vLLM's."""

    prefix_queries: int = 0  # prompt tokens that were looked up in the cache
    prefix_hits: int = 0  # of them those whose keys and values were there
    preemptions: int = 0  # completions that were put back into the queue for want of cache
    drafted: int = 0  # tokens guessed
    accepted: int = 0  # of them those that the model would have chosen


class Submitted(Protocol):
    """A submitted prompt. What it tells grows while it runs, and is read by other threads."""

    cached_tokens: int  # prompt tokens whose keys and values were in the cache
    drafted: int  # tokens that were guessed for it
    accepted: int  # of them those that became part of its answer
    read: bool  # whether the prompt has been computed, or found in the cache


class Listener(Protocol):
    """Told what becomes of one submitted prompt, on the backend's thread. `on_end` comes last, once."""

    def on_start(self) -> None:
        """It has left the queue. Once, even when it is interrupted for others later."""

    def on_prompt(self, logprobs: Sequence[TokenLogprobs | None]) -> None:
        """One entry per prompt token, if they were asked for. Nothing precedes the first: it has none."""

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """One more token, an end token included. True stops this generation here."""

    def on_end(self, error: Exception | None) -> None:
        """No more tokens: finished, stopped, cancelled, or failed with `error`."""


class Backend(Protocol):
    """A loaded model."""

    @property
    def info(self) -> BackendInfo:
        """What runs."""

    def submit(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> Submitted:
        """Queue a prompt; returns the ticket that `cancel` takes. Never blocks."""

    def cancel(self, ticket: Any) -> None:
        """Drop a queued prompt, or stop a running one after its current step. No-op once it has ended."""

    def cache_use(self) -> CacheUse:
        """What the attention cache holds. Cheap: read at each scrape."""

    def counts(self) -> Counts:
        """What it has counted. Cheap: read at each scrape."""

    def close(self) -> None:
        """Cancel everything and release the model."""
