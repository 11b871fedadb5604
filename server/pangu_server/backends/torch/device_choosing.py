"""Chooses the tokens of a batch on its device, without the host waiting for anything.

What depends on generated tokens is on the device; the host knows options and how many tokens there are. Only a
completion with a grammar, which the host follows, makes it wait for the tokens.
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pangu_server.backends.sampling import Sampler, Uniforms, check_ids
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs
from pangu_server.backends.torch.drawing import Draw, draw_by_sorting


class Seat:
    """A completion that has a slot: what the host knows of it."""

    def __init__(self, options: SamplingOptions) -> None:
        self.uniforms = Uniforms(options.seed)
        self.plain = Sampler.is_argmax(options)
        self.greedy = Sampler.is_greedy(options)
        self.changes = Sampler.changes_logits(options)
        self.cuts = options.temperature, options.top_k, options.top_p, options.min_p
        self.penalties = options.repetition_penalty, options.presence_penalty, options.frequency_penalty
        self.penalized = self.penalties != (1, 0, 0)
        self._options = options
        constraint = options.constraint
        self.matcher = None if constraint is None else constraint.matcher(options.end_token_ids)

    def added(self, draw: int) -> list[tuple[int, float]]:
        """What is added to the logits of token number `draw`: ids and values."""
        barred = self._options.end_token_ids if draw < self._options.min_tokens else ()
        return [*self._options.logit_bias, *((token_id, -math.inf) for token_id in barred)]

    def flags(self, assumed: Sequence[int], vocabulary: int) -> npt.NDArray[np.uint8]:
        """A bit for each token that its grammar allows behind those `assumed`; where it allows none, an end token."""
        assert self.matcher is not None
        flags = np.zeros(-(-vocabulary // 8), np.uint8)
        mask = self.matcher.allowed(assumed)
        if mask is None:
            byte, bit = divmod(self._options.end_token_ids[0], 8)
            flags[byte] = 1 << bit
        else:
            count = min(len(mask), len(flags))
            flags[:count] = np.frombuffer(mask, np.uint8)[:count]
        return flags


class DeviceChoosing:
    """See `Choosing`."""

    def __init__(
        self, vocabulary: int, max_rows: int, device: torch.device, draw: Draw = draw_by_sorting
    ) -> None:
        """`vocabulary` is the width of the logits; there are `max_rows` slots, from 0 on."""
        self._vocabulary, self._device = vocabulary, device
        self._draw = draw
        self._seats: dict[int, Seat] = {}
        # How often each token was generated, and whether the prompt has it: of those with penalties only.
        self._counts = torch.zeros(max_rows, vocabulary, dtype=torch.int32, device=device)
        self._prompted = torch.zeros(max_rows, vocabulary, dtype=torch.bool, device=device)

    def join(
        self, slot: int, prompt_ids: Sequence[int], generated_ids: Sequence[int], options: SamplingOptions
    ) -> None:
        """See `Choosing`."""
        check_ids(options, self._vocabulary)
        seat = Seat(options)
        self._seats[slot] = seat
        if seat.matcher is not None:
            for token_id in generated_ids:
                seat.matcher.accept(token_id)
        if seat.penalized:
            self._counts[slot] = 0
            self._prompted[slot] = False
            prompted = upload(self._device, np.array(prompt_ids, dtype=np.int64))
            self._prompted[slot].index_fill_(0, prompted, True)
            self._count(
                [slot] * len(generated_ids), upload(self._device, np.array(generated_ids, dtype=np.int64))
            )

    def leave(self, slot: int) -> None:
        """See `Choosing`."""
        self._seats.pop(slot, None)

    def plain(self, slots: Sequence[int]) -> bool:
        """See `Choosing`."""
        return all(self._seats[slot].plain for slot in slots)

    def choose(
        self,
        logits: torch.Tensor,
        slots: Sequence[int],
        draws: Sequence[int],
        given: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Choosing`."""
        if self.plain(slots):
            return logits.argmax(-1)
        seats = [self._seats[slot] for slot in slots]
        logits = self._changed(logits, slots, draws, given)
        if any(seat.matcher is not None for seat in seats):
            self._confine(logits, slots, given)
        drawn = [row for row, seat in enumerate(seats) if not seat.greedy]
        if not drawn:
            return logits.argmax(-1)
        numbers = [(*seats[row].cuts, seats[row].uniforms[draws[row]]) for row in drawn]
        temperature, top_k, top_p, min_p, uniform = upload(self._device, np.array(numbers).T.copy())
        if len(drawn) == len(slots):
            return self._draw(logits, temperature, top_k.long(), top_p, min_p, uniform)
        rows = upload(self._device, np.array(drawn))
        tokens = self._draw(logits.index_select(0, rows), temperature, top_k.long(), top_p, min_p, uniform)
        return logits.argmax(-1).index_copy_(0, rows, tokens)

    def accept(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        """See `Choosing`."""
        rows = [row for row, slot in enumerate(slots) if self._seats[slot].penalized]
        if rows:
            self._count(
                [slots[row] for row in rows], tokens.index_select(0, upload(self._device, np.array(rows)))
            )
        matchers = [self._seats[slot].matcher for slot in slots]
        if any(matcher is not None for matcher in matchers):
            for matcher, token_id in zip(matchers, tokens.tolist(), strict=True):
                if matcher is not None:
                    matcher.accept(token_id)

    def logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int | None]
    ) -> "DeviceLogprobs":
        """See `Choosing`."""
        return DeviceLogprobs(logits, tokens, tops)

    def _changed(
        self,
        logits: torch.Tensor,
        slots: Sequence[int],
        draws: Sequence[int],
        given: torch.Tensor | None,
    ) -> torch.Tensor:
        """The logits in single precision after bias, least number of tokens and penalties."""
        seats = [self._seats[slot] for slot in slots]
        if not any(seat.changes for seat in seats):
            return logits.float()
        logits = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        added = [
            (row * self._vocabulary + token_id, value)
            for row, seat in enumerate(seats)
            if seat.changes
            for token_id, value in seat.added(draws[row])
        ]
        if added:
            ids, values = zip(*added, strict=True)
            places = upload(self._device, np.array(ids))
            logits.view(-1).index_add_(0, places, upload(self._device, np.array(values, dtype=np.float32)))
        penalized = [row for row, seat in enumerate(seats) if seat.penalized]
        if penalized:
            self._penalize(logits, penalized, slots, given)
        return logits

    def _confine(self, logits: torch.Tensor, slots: Sequence[int], given: torch.Tensor | None) -> None:
        """Leave rows with a grammar the tokens that it allows, in place."""
        inputs: list[int] | None = None
        assumed: dict[int, list[int]] = {}
        rows, masks = [], []
        for row, slot in enumerate(slots):
            matcher = self._seats[slot].matcher
            if matcher is None:
                continue
            if slot in assumed:
                assert given is not None, "rows that assume a draft need its tokens"
                inputs = given.tolist() if inputs is None else inputs
                assumed[slot].append(inputs[row])
            else:  # the token before the first row has been accepted
                assumed[slot] = []
            rows.append(row)
            masks.append(self._seats[slot].flags(assumed[slot], self._vocabulary))
        packed = upload(self._device, np.stack(masks))
        shifts = torch.arange(8, dtype=torch.uint8, device=self._device)
        allowed = (packed[:, :, None] >> shifts & 1).flatten(1)[:, : self._vocabulary]
        places = upload(self._device, np.array(rows))
        confined = logits.index_select(0, places).masked_fill_(allowed == 0, -math.inf)
        logits.index_copy_(0, places, confined)

    def _penalize(
        self, logits: torch.Tensor, penalized: list[int], slots: Sequence[int], given: torch.Tensor | None
    ) -> None:
        """Apply the penalties of these rows, in place."""
        rows, held = upload(self._device, np.array([penalized, [slots[row] for row in penalized]]))
        counts = self._counts.index_select(0, held)
        pairs: list[tuple[int, int]] = []  # (place in `counts`, a row whose token is assumed there)
        rows_of: dict[int, list[int]] = {}
        for place, row in enumerate(penalized):
            own = rows_of.setdefault(slots[row], [])
            own.append(row)
            pairs += [(place, assumed) for assumed in own[1:]]  # the first one's has been accepted
        if pairs:
            assert given is not None, "rows that assume a draft need its tokens"
            places, assumed = upload(self._device, np.array(pairs).T.copy())
            ids = places * self._vocabulary + given.index_select(0, assumed)
            counts.view(-1).index_add_(0, ids, torch.ones_like(ids, dtype=counts.dtype))
        penalties = np.array([self._seats[slots[row]].penalties for row in penalized], dtype=np.float32)
        repetition, presence, frequency = upload(self._device, penalties.T.copy())[:, :, None]
        values, generated = logits.index_select(0, rows), counts > 0
        repeated = torch.where(values > 0, values / repetition, values * repetition)
        values = torch.where(generated | self._prompted.index_select(0, held), repeated, values)
        values -= generated * (presence + frequency * counts)
        logits.index_copy_(0, rows, values)

    def _count(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        ids = upload(self._device, np.array(slots, dtype=np.int64)) * self._vocabulary + tokens
        self._counts.view(-1).index_add_(0, ids, torch.ones_like(ids, dtype=self._counts.dtype))


class DeviceLogprobs:
    """See `Logprobs`: on their way from the device until they are read."""

    def __init__(self, logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int | None]) -> None:
        """See `Choosing.logprobs`. `logits` and `tokens` can be overwritten when this returns."""
        self._tops = tops
        self._asked = [row for row, top in enumerate(tops) if top is not None]
        if not self._asked:
            return
        rows = upload(logits.device, np.array(self._asked))
        logits, tokens = logits.index_select(0, rows).float(), tokens.index_select(0, rows)
        best = logits.amax(-1, keepdim=True)
        # Single precision but for the sum: the logarithm is right to 1e-7 even so.
        total = best.double() + (logits - best).exp_().sum(-1, keepdim=True, dtype=torch.float64).log()
        ids = torch.cat([tokens[:, None], highest(logits, max(top or 0 for top in tops))], 1)
        values = torch.stack([ids.double(), logits.gather(1, ids).double() - total])  # one transfer for both
        self._values = Download(values)

    def read(self) -> list[TokenLogprobs | None]:
        """One entry a row; waits until the device has computed them."""
        entries: list[TokenLogprobs | None] = [None] * len(self._tops)
        if self._asked:
            both = self._values.read()
            ids, values = both[0].long().tolist(), both[1].tolist()
            for place, row in enumerate(self._asked):
                best = zip(ids[place][1:], values[place][1:], strict=True)
                entries[row] = TokenLogprobs(values[place][0], tuple(islice(best, self._tops[row])))
        return entries


class Download:
    """A tensor on its way to the host. Reading it waits for what was launched before this, not for what came after."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy, self._copied = tensor, None
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> torch.Tensor:
        """The tensor, on the host."""
        if self._copied:
            self._copied.synchronize()
        return self._copy


def highest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Ids of the `count` highest logits of each row, highest first; of equal ones the lower id comes first.

    `logits` (rows, vocabulary) are in single precision; returns (rows, at most `count`).
    """
    bits = (logits + 0.0).view(torch.int32).long()  # adding nothing makes -0.0 equal to 0.0
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # as whole numbers in the order of the logits
    width = logits.shape[1]
    order = order * width - torch.arange(width, device=logits.device)
    return order.topk(min(count, width)).indices


def upload(device: torch.device, array: npt.NDArray[Any]) -> torch.Tensor:
    """`array` on the device. The host does not wait for it."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
