"""From logits to tokens: the next one of each row of a step, and what tokens were worth."""

from collections.abc import Sequence
from typing import Protocol

import torch

from pangu_server.backends.seam import SamplingOptions, TokenLogprobs
from pangu_server.backends.torch.device_choosing import DeviceChoosing
from pangu_server.backends.torch.host_choosing import HostChoosing

SCORED_AT_ONCE = 32  # tokens of a prompt: each takes 16 bytes times the vocabulary meanwhile


class Logprobs(Protocol):
    """Log-probabilities of a step's tokens."""

    def read(self) -> list[TokenLogprobs | None]:
        """One entry a row, None for a row that was not asked for. Waits until they are computed."""


class Choosing(Protocol):
    """The choices of the completions of one batch, by `Sampler`'s rules. Belongs to one backend thread.

    A completion has a slot. The same seed draws the same tokens in any company, with drafts, and after it was put
    back. No method waits for the device: a step can be launched before the tokens of the last one are read.
    """

    def join(
        self, slot: int, prompt_ids: Sequence[int], generated_ids: Sequence[int], options: SamplingOptions
    ) -> None:
        """A completion takes `slot`. It may have generated tokens already: it goes on from them.

        Raises:
            IndexError: the options name a token that the logits do not have.
        """

    def leave(self, slot: int) -> None:
        """The completion of `slot` is over, or is put back; it can `join` again."""

    def plain(self, slots: Sequence[int]) -> bool:
        """Whether all of these take the best token as the model's logits have it."""

    def choose(
        self,
        logits: torch.Tensor,
        slots: Sequence[int],
        draws: Sequence[int],
        given: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The tokens (n,), on the device: row i of `logits` (n, vocabulary) is for token `draws[i]` of `slots[i]`.

        Tokens are counted from 0. Changes nothing: `accept` says which tokens came to be. So a slot can have several
        rows, in order: those that verify a draft. Each assumes the draft's tokens before it; `given` (n,), on the
        device, has the token that each row was computed from, and is needed where a slot has several rows.
        """

    def accept(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        """`tokens` (n,), on the device, are generated now: token i by `slots[i]`."""

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int | None]) -> Logprobs:
        """What `tokens` (n,) were worth to the model, with the `tops[i]` best ones; None: row i is not asked for."""


def choosing_for(vocabulary: int, max_rows: int, device: torch.device) -> Choosing:
    """For logits of width `vocabulary` on `device`, and slots from 0 to `max_rows` - 1."""
    if device.type == "cpu":
        return HostChoosing(vocabulary)
    return DeviceChoosing(vocabulary, max_rows, device)


def prompt_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], options: SamplingOptions
) -> list[TokenLogprobs]:
    """One entry a token of a prompt whose log-probabilities are asked for.

    `logits` (at least as many, vocabulary) are those before each.
    """
    top = options.prompt_logprobs
    assert top is not None
    entries: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), SCORED_AT_ONCE):
        ids = token_ids[start : start + SCORED_AT_ONCE]
        # In single precision it would round by up to 2e-5 a token.
        logs = logits[start : start + len(ids)].double().log_softmax(-1)
        chosen = logs.gather(1, torch.tensor(ids, device=logs.device)[:, None])[:, 0].tolist()
        values, best = (tensor.tolist() for tensor in logs.topk(min(top, logs.shape[1])))
        entries += [
            TokenLogprobs(logprob, tuple(zip(names, row, strict=True)))
            for logprob, names, row in zip(chosen, best, values, strict=True)
        ]
    return entries
