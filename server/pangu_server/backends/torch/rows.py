"""Rows: who has which slot of the cache, and what it holds.

A row keeps its slot for life: when others end, nothing moves. A row whose ticket has ended stays for a while, because
the next prompt may begin like it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import TokenLogprobs
from pangu_server.backends.torch.cache import Slots

# What the cache may hold only because a later prompt may begin like an earlier one.
KEPT_BYTES = 1 << 30


@dataclass(eq=False, slots=True)
class Row:
    """One row of the cache: what it holds and for whom."""

    slot: int
    ticket: Ticket | None = None  # None: idle
    tokens: list[int] = field(default_factory=list)  # the ticket's, or those of the one that ended
    held: int = 0  # how many of them have keys and values
    left_at: int = 0  # counts the tickets that had ended before its last one
    decoding: bool = False  # its prompt is computed: it takes part in every step
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)  # of those before `held`


class Rows:
    """The rows of a cache, at most `max_rows`. Belongs to one thread; another may iterate over them."""

    def __init__(self, slots: Slots, max_rows: int) -> None:
        self._slots, self._max_rows = slots, max_rows
        self._rows: list[Row] = []  # each at the place of its slot
        self._left = 0

    def __iter__(self) -> Iterator[Row]:
        return iter(list(self._rows))

    @property
    def decoding(self) -> list[Row]:
        """Those that take part in a step, in the order of their slots."""
        return [row for row in self._rows if row.decoding]

    def clear(self) -> None:
        """Forget all rows, and release the cache's memory."""
        self._slots.clear()
        self._rows.clear()

    def clear_if_large(self) -> None:
        """The same when the cache holds more than is worth keeping. All rows are idle."""
        if self._slots.held_bytes > KEPT_BYTES:
            self.clear()

    def claim(self, ticket: Ticket) -> tuple[Row, Row, int]:
        """A row for `ticket`, and the row that has keys and values for its first tokens, and for how many.

        The row holds nothing until `fill_from` has been called.
        """
        # The last token is always computed, and all are when their log-probabilities are asked for.
        wanted = [] if ticket.prompt_due else ticket.tokens[:-1]
        common, source = max(
            ((_common(row.tokens[: row.held], wanted), row) for row in self._rows),
            key=lambda pair: (pair[0], pair[1].ticket is None),
            default=(0, Row(slot=-1)),
        )
        row = self._row_for(source, common)
        row.ticket, row.tokens, row.held, row.prompt_logprobs = ticket, ticket.tokens, 0, [None]
        return row, source, common

    def fill_from(self, row: Row, source: Row, common: int) -> None:
        """Give `row` the first `common` keys and values of `source`, and zeros behind them."""
        self._slots.reserve(len(self._rows), common)
        if common and source is not row:
            self._slots.copy(source.slot, row.slot, common)
        self._slots.wipe(row.slot, common)
        row.held = common

    def leave(self, row: Row) -> Ticket:
        """The row's ticket has ended; what the row holds stays for others."""
        ticket, row.ticket, row.decoding = row.ticket, None, False
        assert ticket
        self._left += 1
        row.left_at = self._left
        return ticket

    def _row_for(self, source: Row, common: int) -> Row:
        """An idle row: `source` itself when little is lost with it, else a new one, else the oldest."""
        idle = [row for row in self._rows if row.ticket is None]
        if source in idle and 2 * common >= source.held:
            return source
        roomy = len(self._rows) < self._slots.rows or 2 * self._slots.held_bytes <= KEPT_BYTES
        if not idle or (roomy and len(self._rows) < self._max_rows):
            self._rows.append(Row(slot=len(self._rows)))
            return self._rows[-1]
        return min(idle, key=lambda row: row.left_at)


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the common prefix."""
    length = 0
    for a, b in zip(held, wanted, strict=False):
        if a != b:
            break
        length += 1
    return length
