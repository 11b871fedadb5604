"""The log-probabilities of a prompt's tokens, a piece at a time: those of a whole one would be positions x vocabulary.

The library gives the logits of all positions of a text, or of the tokens that it generates. For a piece from the
middle of a text it generates with a companion: the text up to the piece. The library prefills both that far. Then it
takes the text's tokens one by one, while the companion generates, and shows the logits of both after each.
"""

from collections.abc import Callable, Sequence

from pangu_server.backends.ctranslate2.batch import Batch, Interrupted
from pangu_server.backends.ctranslate2.costs import CostModel
from pangu_server.backends.sampling import Logits, token_logprobs
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs


class Nobody:
    """A listener that cares for nothing."""

    def on_start(self) -> None:
        """See `Listener`."""

    def on_prompt(self, logprobs: Sequence[TokenLogprobs | None]) -> None:
        """See `Listener`."""

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """See `Listener`."""
        return False

    def on_end(self, error: Exception | None) -> None:
        """See `Listener`."""


class Reading(Batch):
    """Scores up to `most` tokens of a prompt from number `start` on: `entries`, and `last` when it came to the end."""

    def __init__(
        self, ticket: Ticket, start: int, most: int, costs: CostModel, over: Callable[[], bool]
    ) -> None:
        steps = len(ticket.tokens) - start + 1
        companion = Ticket(ticket.tokens[:start], SamplingOptions(max_tokens=steps, temperature=0), Nobody())
        super().__init__([ticket, companion], costs, over)
        self.max_tokens, self.needs_logits = steps, True
        self.entries: list[TokenLogprobs] = []
        self.last: Logits | None = None  # (vocabulary,) after the prompt
        self._start, self._most = start, most

    def take(
        self, row: int, step: int, token_id: int, read_logits: Callable[[], Logits] | None = None
    ) -> bool:
        """See `Batch`. Only the companion is heard of, until the text ends."""
        ticket = self.tickets[0]
        if step != self._step:
            self._begin(step, read_logits)
            assert self._logits is not None
            top, position = ticket.options.prompt_logprobs, self._start + step
            if position == len(ticket.tokens):
                self.last = self._logits[0].copy()
                raise Interrupted
            assert top is not None
            self.entries.append(token_logprobs(self._logits[0], ticket.tokens[position], top))
        if ticket.cancelled or len(self.entries) == self._most:
            raise Interrupted
        self._check()
        return False
