"""What a batch costs on this machine, learned from what has run."""

from collections.abc import Sequence

from pangu_server.backends.ctranslate2.drawing import is_own
from pangu_server.backends.schedule import Ticket

EXPECTED_TOKENS = 64  # assumed of a row that may generate more: many end long before their limit
SEEN_TOKENS = 32  # a shorter prefill does not show next to the step that it is measured with

Row = tuple[int, float]  # tokens there are, tokens that are expected to come


class CostModel:
    """Predicts the seconds of a batch from five figures that it learns from what has run.

    It starts from a small model on a CPU: prefilling a token costs a tenth of a step, twice that in a prompt of 1,000
    tokens, and a further row costs a tenth of the first. The first measurements replace the scale of both.
    """

    def __init__(self) -> None:
        self.step_seconds = 0.02  # of a single row
        self.row_share = 0.1  # what a further row adds, of a single row's step: 0 to 1
        self.token_seconds = 0.002  # of prefilling a token of a very short prompt
        self.growth_seconds = 0.002  # what each token of a prompt costs more for every 1,000 tokens of it
        self.draft_tokens = 4.0  # of a row that `Sampler` draws, until it disagrees with the engine
        self._learned = self._prefilled = False

    def step(self, rows: int) -> float:
        """Seconds of one step of `rows` rows."""
        return self.step_seconds * (1 + self.row_share * (rows - 1))

    def prefill(self, tokens: int, rows: int = 1) -> float:
        """Seconds of prefilling `rows` rows of `tokens` tokens each: more than twice as many for twice the tokens."""
        return rows * tokens * (self.token_seconds + self.growth_seconds * tokens / 1000)

    def batch(self, tickets: Sequence[Ticket]) -> float:
        """Seconds of a batch from its start to the end of its last row."""
        rows = [self._row(ticket) for ticket in tickets]
        shortest = min(length for length, _ in rows)
        seconds, done = self.prefill(shortest, len(rows)), 0.0
        for ended, steps in enumerate(sorted(length - shortest + new for length, new in rows)):
            seconds += (steps - done) * self.step(len(rows) - ended)
            done = steps
        return seconds

    def _row(self, ticket: Ticket) -> Row:
        most = self.draft_tokens if is_own(ticket) else EXPECTED_TOKENS
        return len(ticket.tokens), min(ticket.remaining, most)

    def learn_step(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`."""
        if rows == 1 or not self._learned:
            single = seconds / (1 + self.row_share * (rows - 1))
            self.step_seconds += (single - self.step_seconds) / (16 if self._learned else 1)
            self._learned = True
        else:
            share = (seconds / self.step_seconds - 1) / (rows - 1)
            self.row_share += (min(1.0, max(0.0, share)) - self.row_share) / 16

    def learn_prefill(self, tokens: int, rows: int, seconds: float) -> None:
        """The first step of `rows` rows took `seconds`, with the prefill of `tokens` tokens of each in it.

        Normalised least mean squares: both figures move towards what this length shows, each by its part in it. So
        prompts of one length settle their sum, and those of two lengths both.
        """
        if tokens * rows < SEEN_TOKENS:
            return
        each = max(0.0, seconds - self.step(rows)) / (tokens * rows)
        predicted = self.prefill(tokens) / tokens
        if not self._prefilled and each and predicted:
            self.token_seconds *= each / predicted
            self.growth_seconds *= each / predicted
            self._prefilled = True
            return
        thousands = tokens / 1000
        change = (each - predicted) / (1 + thousands**2) / 4
        self.token_seconds = max(0.0, self.token_seconds + change)
        self.growth_seconds = max(0.0, self.growth_seconds + change * thousands)

    def learn_draft(self, tokens: int) -> None:
        """A row that `Sampler` draws went on for `tokens` before it ended or disagreed."""
        self.draft_tokens += (tokens - self.draft_tokens) / 16
