"""From logits to tokens: the next one of each row of a step, and what tokens were worth.

`Choosing` does for a whole batch on its device what `Sampler` does for one completion, without waiting for the
device: a step can be launched before the host has read the tokens of the last one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pangu_server.backends.sampling import Sampler, Uniforms
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs

# draw(logits, temperature, top_k, top_p, min_p, uniform): the tokens (n,). `logits` (n, vocabulary) are in single
# precision; the others (n,) in double precision, but for `top_k`, which are whole numbers. Temperatures are above 0,
# top_k is not 1, and 0 where there is none.
Draw = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]


@dataclass(slots=True)
class Seat:
    """A completion that has a slot."""

    options: SamplingOptions
    uniforms: Uniforms
    plain: bool  # its choice is the argmax of the model's logits
    greedy: bool
    penalized: bool


class Choosing:
    """The choices of the completions of one batch. Belongs to one backend thread.

    What depends on generated tokens is on the device; the host knows options and how many tokens there are.
    """

    def __init__(
        self, vocabulary: int, max_rows: int, device: torch.device, draw: Draw | None = None
    ) -> None:
        """`vocabulary` is the width of the logits; there are `max_rows` slots, from 0 on."""
        self._vocabulary, self._device = vocabulary, device
        self._draw = draw or (draw_on_host if device.type == "cpu" else draw_by_sorting)
        self._seats: dict[int, Seat] = {}
        self._parameters = np.zeros((7, max_rows))
        # How often each token was generated, and whether the prompt has it: kept for those with penalties only.
        self._counts = torch.zeros(max_rows, vocabulary, dtype=torch.int32, device=device)
        self._prompted = torch.zeros(max_rows, vocabulary, dtype=torch.bool, device=device)

    # ------------------------------------------------------------------ who is there

    def join(
        self, slot: int, prompt_ids: Sequence[int], generated_ids: Sequence[int], options: SamplingOptions
    ) -> None:
        """A completion takes `slot`. It may have tokens already: then it goes on from them.

        Raises:
            IndexError: the options name a token that the logits do not have.
        """
        named = [*(token_id for token_id, _ in options.logit_bias)]
        named += options.end_token_ids if options.min_tokens else ()
        for token_id in named:
            if not 0 <= token_id < self._vocabulary:  # on a device it would end the process
                raise IndexError(f"token {token_id} of {self._vocabulary}")
        penalties = options.repetition_penalty, options.presence_penalty, options.frequency_penalty
        self._seats[slot] = Seat(
            options,
            Uniforms(options.seed),
            plain=Sampler.is_argmax(options),
            greedy=Sampler.is_greedy(options),
            penalized=penalties != (1, 0, 0),
        )
        cuts = options.top_k, options.top_p, options.min_p
        self._parameters[:, slot] = (options.temperature, *cuts, *penalties)
        if self._seats[slot].penalized:
            self._counts[slot] = 0
            self._prompted[slot] = False
            self._prompted[slot].index_fill_(0, self._upload(np.unique(np.array(prompt_ids, np.int64))), True)
            self._count([slot] * len(generated_ids), self._upload(np.array(generated_ids, dtype=np.int64)))

    def leave(self, slot: int) -> None:
        """The completion of `slot` is over, or has to wait: `join` takes it up again."""
        del self._seats[slot]

    def drafts(self, slot: int) -> bool:
        """Whether several tokens of `slot` can be chosen in one step: penalties would have to know those before."""
        return not self._seats[slot].penalized

    def plain(self, slots: Sequence[int]) -> bool:
        """Whether the choice is the argmax of the model's logits for all of these."""
        return all(self._seats[slot].plain for slot in slots)

    # ------------------------------------------------------------------ a step

    def choose(
        self,
        logits: torch.Tensor,
        slots: Sequence[int],
        draws: Sequence[int],
        given: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The tokens (n,) after these logits (n, vocabulary): row i is token number `draws[i]` of slot `slots[i]`.

        A slot may have several rows, of rising numbers. Each of them assumes that the rows before it end in what
        `given` (n,), on the device, has at the next one: `given[i]` is the token that row i was computed from.
        Changes nothing: `accept` says which tokens came to be.
        """
        if self.plain(slots):
            return logits.argmax(-1)
        logits = self._changed(logits, slots, draws, given)
        drawn = [row for row, slot in enumerate(slots) if not self._seats[slot].greedy]
        if not drawn:
            return logits.argmax(-1)
        numbers = self._parameters[:5, [slots[row] for row in drawn]]
        numbers[4] = [self._seats[slots[row]].uniforms[draws[row]] for row in drawn]
        temperature, top_k, top_p, min_p, uniform = self._upload(numbers)
        mixed = len(drawn) < len(slots)
        rows = self._upload(np.array(drawn)) if mixed else None
        part = logits if rows is None else logits.index_select(0, rows)
        tokens = self._draw(part, temperature, top_k.long(), top_p, min_p, uniform)
        return tokens if rows is None else logits.argmax(-1).index_copy_(0, rows, tokens)

    def accept(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        """`tokens` (n,), on the device, are now generated: token i by slot `slots[i]`."""
        rows = [row for row, slot in enumerate(slots) if self._seats[slot].penalized]
        if rows:
            part = tokens if len(rows) == len(slots) else tokens.index_select(0, self._upload(np.array(rows)))
            self._count([slots[row] for row in rows], part)

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int | None]) -> "Logprobs":
        """What `tokens` (n,) were worth, with the `tops[i]` best ones of row i; None: row i is not asked for."""
        raise NotImplementedError

    # ------------------------------------------------------------------ below

    def _changed(
        self,
        logits: torch.Tensor,
        slots: Sequence[int],
        draws: Sequence[int],
        given: torch.Tensor | None,
    ) -> torch.Tensor:
        """The logits in single precision, after bias, least number of tokens and penalties."""
        raise NotImplementedError

    def _count(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        raise NotImplementedError

    def _upload(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """`array` on the device. The host does not wait for it."""
        tensor = torch.from_numpy(array)
        return (
            tensor if self._device.type == "cpu" else tensor.pin_memory().to(self._device, non_blocking=True)
        )


class Logprobs:
    """Log-probabilities of a step's tokens: on the device until they are read."""

    def read(self) -> list[TokenLogprobs | None]:
        """One entry a row; waits for the device."""
        raise NotImplementedError


def draw_on_host(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """A `Draw` on a CPU: `Sampler`'s own rule, row by row."""
    raise NotImplementedError


def draw_by_sorting(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """A `Draw` on any device, in a fixed sequence of operations. The host waits for none of them."""
    raise NotImplementedError


class NextTokens:
    """The choice of a step's tokens, row by row. `logits` (rows, vocabulary) come from the model's device."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self._best: list[int] = logits.argmax(-1).tolist()

    def take(self, row: int, ticket: Ticket) -> bool:
        """Give `ticket` the token of `row`; whether its generation is over."""
        if Sampler.is_argmax(ticket.options) and ticket.options.logprobs is None:
            return ticket.take(self._best[row])
        values = self._logits[row].cpu().numpy()
        return ticket.take(ticket.choose(values), values)


def prompt_logprobs(logits: torch.Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """One entry a token; `logits` (at least as many, vocabulary) are those before each."""
    # In single precision it would round by up to 2e-5 a token.
    logs = logits[: len(token_ids)].double().log_softmax(-1)
    chosen = logs.gather(1, torch.tensor(token_ids, device=logs.device)[:, None])[:, 0].tolist()
    values, best = (tensor.tolist() for tensor in logs.topk(min(top, logs.shape[1])))
    return [
        TokenLogprobs(logprob, tuple(zip(ids, row, strict=True)))
        for logprob, ids, row in zip(chosen, best, values, strict=True)
    ]
