"""Pages of the attention cache: who holds which, and which tokens a kept one is of.

A sequence's keys and values lie in pages of `page_tokens` tokens. Pages are kept in a tree: a page's place in it is the
tokens before it, so a new prompt finds what it shares with any earlier one by walking down. Whole pages are shared by
reference; of a page that begins like the prompt's next tokens the caller copies the beginning. Pages that nobody holds
stay until their room is needed, oldest first. Belongs to one thread.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(eq=False, slots=True)
class Page:
    """One page. `tokens` are those that others may find in it, () while it is one sequence's own."""

    index: int
    references: int = 0
    tokens: tuple[int, ...] = ()
    parent: "Page | None" = None
    children: "dict[int, list[Page]]" = field(default_factory=dict)  # by their first token


class Match(NamedTuple):
    """What the cache has of a prompt."""

    whole: list[Page]  # each full, one after the other from the first token on
    partial: Page | None  # begins like the tokens behind them
    partial_tokens: int  # how many


class Pages:
    """`count` pages: free, held by sequences, or kept for later ones."""

    def __init__(self, count: int, page_tokens: int) -> None:
        self.count, self.page_tokens = count, page_tokens
        self._roots: dict[str | None, Page] = {}  # by adapter: with another one keys and values differ
        self._free = list(range(count - 1, -1, -1))
        self._kept: OrderedDict[Page, None] = (
            OrderedDict()
        )  # held by nobody, oldest first; a leaf comes first

    @property
    def available(self) -> int:
        """Pages that `take` can still give."""
        return len(self._free) + len(self._kept)

    @property
    def free(self) -> int:
        """Pages that nobody holds and nothing is kept in."""
        return len(self._free)

    @property
    def held(self) -> int:
        """Pages that sequences hold."""
        return self.count - self.available

    def find(self, tokens: Sequence[int], adapter: str | None = None) -> Match:
        """The longest known beginning of `tokens`. Hold its pages before anything else is taken."""
        node, size = self._root(adapter), self.page_tokens
        whole: list[Page] = []
        while True:
            at = len(whole) * size
            wanted = tuple(tokens[at : at + size])
            best, best_length = None, 0
            for child in node.children.get(wanted[0], ()) if wanted else ():
                length = _common(child.tokens, wanted)
                if length > best_length:
                    best, best_length = child, length
            if best is None or best_length < size:
                return Match(whole, best, best_length)
            whole.append(best)
            node = best

    def hold(self, page: Page) -> None:
        """One more sequence uses `page`."""
        page.references += 1
        self._kept.pop(page, None)

    def take(self) -> Page | None:
        """An empty page, held by the caller; the oldest kept one is forgotten for it. None: all are held."""
        if not self._free:
            if not self._kept:
                return None
            self._forget(next(iter(self._kept)))
        return Page(index=self._free.pop(), references=1)

    def keep(
        self, page: Page, parent: Page | None, tokens: Sequence[int], adapter: str | None = None
    ) -> Page:
        """Let others find `page`, which holds `tokens` behind those of `parent` (None: the first ones).

        `parent` is whole and in the tree. Returns the page to go on with: another one where these tokens are known
        already, held in the place of `page`, which is free then.
        """
        node, known = parent or self._root(adapter), tuple(tokens)
        siblings = node.children.setdefault(known[0], [])
        for sibling in list(siblings):
            if sibling.tokens[: len(known)] == known:
                self.hold(sibling)
                self.release([page])
                return sibling
            if not sibling.references and known[: len(sibling.tokens)] == sibling.tokens:
                self._forget(sibling)  # a shorter beginning of this one
        siblings = node.children.setdefault(known[0], [])
        page.tokens, page.parent = known, node
        siblings.append(page)
        return page

    def _root(self, adapter: str | None) -> Page:
        return self._roots.setdefault(adapter, Page(index=-1))

    def release(self, pages: Sequence[Page]) -> None:
        """A sequence that held these, in its order, needs them no more."""
        # The last one first: it is older than those that it depends on.
        for page in reversed(pages):
            page.references -= 1
            if page.references == 0:
                if page.parent is None:
                    self._free.append(page.index)
                else:
                    self._kept[page] = None

    def _forget(self, page: Page) -> None:
        del self._kept[page]
        assert page.parent is not None
        assert not page.children
        siblings = page.parent.children[page.tokens[0]]
        siblings.remove(page)
        if not siblings:
            del page.parent.children[page.tokens[0]]
        page.parent = None
        self._free.append(page.index)


def _common(known: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = 0
    for a, b in zip(known, wanted, strict=False):
        if a != b:
            break
        length += 1
    return length
