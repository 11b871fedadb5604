"""From logits to tokens: the next one of each row of a step, and what a prompt's tokens were worth."""

from collections.abc import Sequence

import torch

from pangu_server.backends.sampling import Sampler
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import TokenLogprobs


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
