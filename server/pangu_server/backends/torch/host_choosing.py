"""Chooses tokens on a CPU: the sampler itself, row by row. It touches less memory than operations on a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pangu_server.backends.sampling import Logits, Sampler, check_ids, token_logprobs
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs


@dataclass(frozen=True, slots=True)
class HostLogprobs:
    """See `Logprobs`: already computed."""

    entries: list[TokenLogprobs | None]

    def read(self) -> list[TokenLogprobs | None]:
        """See `Logprobs`."""
        return self.entries


class HostChoosing:
    """See `Choosing`."""

    def __init__(self, vocabulary: int) -> None:
        """`vocabulary` is the width of the logits."""
        self._vocabulary = vocabulary
        self._samplers: dict[int, Sampler] = {}

    def join(
        self, slot: int, prompt_ids: Sequence[int], generated_ids: Sequence[int], options: SamplingOptions
    ) -> None:
        """See `Choosing`."""
        check_ids(options, self._vocabulary)
        self._samplers[slot] = Sampler(prompt_ids, options, generated_ids)

    def leave(self, slot: int) -> None:
        """See `Choosing`."""
        self._samplers.pop(slot, None)

    def plain(self, slots: Sequence[int]) -> bool:
        """See `Choosing`."""
        return all(self._samplers[slot].plain for slot in slots)

    def choose(
        self,
        logits: torch.Tensor,
        slots: Sequence[int],
        draws: Sequence[int],
        given: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Choosing`."""
        inputs = [] if given is None else given.tolist()
        assumed: dict[int, list[int]] = {}
        tokens = []
        for row, (slot, draw) in enumerate(zip(slots, draws, strict=True)):
            if slot in assumed:
                assumed[slot].append(inputs[row])
            else:  # the token before the first row has been accepted
                assumed[slot] = []
            tokens.append(self._samplers[slot].choose(_numbers(logits[row]), draw, assumed[slot]))
        return torch.tensor(tokens)

    def accept(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        """See `Choosing`."""
        for slot, token_id in zip(slots, tokens.tolist(), strict=True):
            self._samplers[slot].accept(token_id)

    def logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int | None]
    ) -> HostLogprobs:
        """See `Choosing`."""
        rows = enumerate(zip(tokens.tolist(), tops, strict=True))
        return HostLogprobs(
            [
                None if top is None else token_logprobs(_numbers(logits[row]), token_id, top)
                for row, (token_id, top) in rows
            ]
        )


def _numbers(row: torch.Tensor) -> Logits:
    """The logits of one row (vocabulary,) as NumPy has them."""
    numbers: Logits = row.float().numpy()
    return numbers
