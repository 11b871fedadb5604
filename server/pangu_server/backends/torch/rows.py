"""Rows: the completions that run, what each holds of the cache, and what a step computes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import TokenLogprobs
from pangu_server.backends.torch.cache import PAGE_TOKENS, PagedCache
from pangu_server.backends.torch.drafting import Lookup
from pangu_server.backends.torch.pages import Page, Pages

Keep = Literal["none", "last", "all"]  # the logits that a part of a step is for


@dataclass(eq=False, slots=True)
class Row:
    """A completion that runs: its slot, its pages, how far it is computed."""

    ticket: Ticket
    slot: int
    number: int  # counts admissions: the newest gives way first
    pages: list[Page] = field(default_factory=list)
    listed: int = 0  # the first of them that others can find
    computed: int = 0  # tokens whose keys and values are there, or on their way
    flying: int = 0  # tokens that the device has chosen and the host has not read
    ended: bool = False
    lookup: Lookup | None = None
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be chosen; 1 while it generates."""
        return len(self.ticket.tokens) + self.flying - self.computed

    @property
    def draws(self) -> int:
        """Tokens that have been chosen, read or not."""
        return self.ticket.generated + self.flying


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a step computes of a row: `count` tokens, from its position `start` on; the last ones are guesses."""

    row: Row
    start: int
    count: int
    keep: Keep
    last: bool  # nothing of the row is left to compute
    choices: int  # tokens chosen from it: the row's next one, and one behind each guess
    guesses: Sequence[int] = ()

    @classmethod
    def of(cls, row: Row, count: int, guesses: Sequence[int] = ()) -> "Part":
        """The next `count` tokens of `row`, guesses included."""
        ticket = row.ticket
        done = count - len(guesses) == row.pending
        choices = 1 + len(guesses) if done and ticket.remaining > row.flying else 0
        keep: Keep = "all" if ticket.prompt_due or guesses else "last" if choices else "none"
        return cls(row, row.computed, count, keep, done, choices, guesses)

    @property
    def known(self) -> int:
        """Its tokens but for the guesses."""
        return self.count - len(self.guesses)

    @property
    def kept(self) -> int:
        """Its logits."""
        return {"none": 0, "last": 1, "all": self.count}[self.keep]


class Rows:
    """Slots and pages of the rows that run. Belongs to one thread; another may read the figures."""

    def __init__(self, cache: PagedCache, slots: int) -> None:
        self.cache, self.pages = cache, Pages(cache.pages, PAGE_TOKENS)
        self.running: list[Row] = []  # in the order of their admission
        self._slots = list(range(slots - 1, -1, -1))
        self._admitted = 0

    @property
    def full(self) -> bool:
        """Whether there is no slot left."""
        return not self._slots

    def claim(self, ticket: Ticket) -> Row:
        """A row for `ticket`, with all pages that the cache has of its tokens. There is a slot."""
        row = Row(ticket, self._slots.pop(), self._admitted)
        self._admitted += 1
        self.running.append(row)
        # The last token is always computed, and all are when their log-probabilities are asked for.
        match = self.pages.find([] if ticket.prompt_due else ticket.tokens[:-1], ticket.options.adapter)
        for page in (*match.whole, *([match.partial] if match.partial else [])):
            self.pages.hold(page)
        self._append(row, match.whole)
        row.listed, row.computed = len(match.whole), len(match.whole) * PAGE_TOKENS
        if match.partial:
            if own := self.pages.take():
                self.cache.copy(match.partial.index, own.index)
                self._append(row, [own])
                row.computed += match.partial_tokens
            self.pages.release([match.partial])
        return row

    def sharing(self, ticket: Ticket) -> bool:
        """Whether a row computes right now what `ticket` could find in the cache a turn later."""
        if ticket.prompt_due:
            return False
        adapter = ticket.options.adapter
        known = len(self.pages.find(ticket.tokens[:-1], adapter).whole)
        return any(
            row.pending > 1
            and row.ticket.options.adapter == adapter
            and _common_pages(row.ticket.tokens, ticket.tokens[:-1]) > known
            for row in self.running
        )

    def reserve(self, row: Row, tokens: int) -> bool:
        """Make room for the first `tokens` tokens of `row`; False if all pages are held."""
        while len(row.pages) * PAGE_TOKENS < tokens:
            page = self.pages.take()
            if page is None:
                return False
            self._append(row, [page])
        return True

    def share(self, row: Row) -> None:
        """Let others find what `row` has computed, in whole pages."""
        known = min(row.computed, len(row.ticket.tokens))
        while (row.listed + 1) * PAGE_TOKENS <= known:
            self._keep(row, PAGE_TOKENS)

    def leave(self, row: Row, *, sound: bool = True) -> None:
        """The row is over or put back; `sound`: what it computed can be trusted and stays for others."""
        if sound:
            self.share(row)
            known = min(row.computed, len(row.ticket.tokens))
            if rest := known - row.listed * PAGE_TOKENS:
                self._keep(row, rest)
        self.pages.release(row.pages)
        row.pages, row.ended = [], True
        self.running.remove(row)
        self._slots.append(row.slot)

    def _keep(self, row: Row, count: int) -> None:
        index = row.listed
        parent = row.pages[index - 1] if index else None
        first = index * PAGE_TOKENS
        tokens, adapter = row.ticket.tokens[first : first + count], row.ticket.options.adapter
        page = self.pages.keep(row.pages[index], parent, tokens, adapter)
        row.pages[index] = page
        self.cache.give(row.slot, index, [page.index])
        row.listed += 1

    def _append(self, row: Row, pages: Sequence[Page]) -> None:
        first = len(row.pages)
        row.pages += pages
        self.cache.give(row.slot, first, [page.index for page in pages])


def _common_pages(a: Sequence[int], b: Sequence[int]) -> int:
    """Whole pages that both begin with."""
    pages = 0
    while (pages + 1) * PAGE_TOKENS <= min(len(a), len(b)):
        part = slice(pages * PAGE_TOKENS, (pages + 1) * PAGE_TOKENS)
        if a[part] != b[part]:
            break
        pages += 1
    return pages
