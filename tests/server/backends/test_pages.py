"""Pages against a cache that keeps every token by itself: nothing is leaked, shared wrongly or forgotten while held."""

import random

import pytest

from pangu_server.backends.torch.pages import Page, Pages

SIZE, COUNT, STEPS = 4, 24, 10_000


class Sequence:
    """A sequence as `Rows` keeps one: its tokens, its pages, how many of them are listed."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.pages, self.listed = tokens, list[Page](), 0
        self.computed = 0


class Model:
    """Drives `Pages` as `Rows` does, and beside it notes which tokens each page holds."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.pages = Pages(COUNT, SIZE)
        self.holds: dict[
            int, list[tuple[int, ...]]
        ] = {}  # page index -> what each of its places was computed from
        self.running: list[Sequence] = []
        self.preempted = self.hits = self.partial_hits = 0

    def write(self, sequence: Sequence, upto: int) -> bool:
        """Compute tokens up to `upto`; False if there is no page left."""
        while len(sequence.pages) * SIZE < upto:
            page = self.pages.take()
            if page is None:
                return False
            self.holds[page.index] = []
            sequence.pages.append(page)
        for at in range(sequence.computed, upto):
            held = self.holds[sequence.pages[at // SIZE].index]
            del held[at % SIZE :]
            held.append(tuple(sequence.tokens[: at + 1]))
        sequence.computed = upto
        return True

    def check(self, sequence: Sequence) -> None:
        """Every token's keys and values are those of its own sequence."""
        for at in range(sequence.computed):
            held = self.holds[sequence.pages[at // SIZE].index]
            assert held[at % SIZE] == tuple(sequence.tokens[: at + 1])

    def admit(self) -> None:
        heads = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 9, 9], [5, 5]]
        head = self.draw.choice(heads)
        rest = [self.draw.randrange(1, 4) for _ in range(self.draw.randrange(1, 14))]
        sequence = Sequence(head[: self.draw.randrange(len(head) + 1)] + rest)
        match = self.pages.find(sequence.tokens[:-1])
        for page in (*match.whole, *([match.partial] if match.partial else [])):
            self.pages.hold(page)
        sequence.pages, sequence.listed = list(match.whole), len(match.whole)
        sequence.computed = len(match.whole) * SIZE
        self.hits += sequence.listed
        if match.partial:
            if own := self.pages.take():
                self.holds[own.index] = self.holds[match.partial.index][: match.partial_tokens]
                sequence.pages.append(own)
                sequence.computed += match.partial_tokens
                self.partial_hits += 1
            self.pages.release([match.partial])
        self.check(sequence)
        self.running.append(sequence)
        self.advance(sequence, len(sequence.tokens))

    def advance(self, sequence: Sequence, upto: int) -> None:
        while not self.write(sequence, upto):
            victim = self.running[-1]
            self.preempted += 1
            self.leave(victim)
            if victim is sequence:
                return
        self.share(sequence)

    def share(self, sequence: Sequence) -> None:
        while (sequence.listed + 1) * SIZE <= sequence.computed:
            self.keep(sequence, SIZE)

    def keep(self, sequence: Sequence, count: int) -> None:
        at = sequence.listed
        parent = sequence.pages[at - 1] if at else None
        first = at * SIZE
        tokens = sequence.tokens[first : first + count]
        sequence.pages[at] = self.pages.keep(sequence.pages[at], parent, tokens)
        sequence.listed += 1

    def leave(self, sequence: Sequence) -> None:
        self.share(sequence)
        if rest := sequence.computed - sequence.listed * SIZE:
            self.keep(sequence, rest)
        self.check(sequence)
        self.pages.release(sequence.pages)
        self.running.remove(sequence)

    def step(self) -> None:
        if not self.running or (len(self.running) < 5 and self.draw.random() < 0.3):
            self.admit()
        else:
            sequence = self.draw.choice(self.running)
            if self.draw.random() < 0.15 or len(sequence.tokens) > (COUNT - 6) * SIZE // 2:
                self.leave(sequence)
            else:
                sequence.tokens.append(self.draw.randrange(1, 4))
                self.advance(sequence, len(sequence.tokens))
        held = {page.index for sequence in self.running for page in sequence.pages}
        assert self.pages.held == len(held)
        assert 0 <= self.pages.free <= self.pages.available == COUNT - len(held)


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_steps_against_a_naive_cache(seed: int) -> None:
    model = Model(seed)
    for _ in range(STEPS):
        model.step()
    for sequence in list(model.running):
        model.leave(sequence)
    assert model.pages.available == COUNT, "nothing is leaked"
    assert model.preempted > 20
    assert model.hits > 500
    assert model.partial_hits > 200
    taken = [model.pages.take() for _ in range(COUNT)]
    assert len({page.index for page in taken if page}) == COUNT, "and each page is there once"
    assert model.pages.take() is None
    assert model.pages.find([1, 2, 3, 4]).whole == []


def test_the_oldest_is_forgotten_first_and_a_parent_after_its_children() -> None:
    pages = Pages(4, 2)
    old, new = ([pages.take(), pages.take()] for _ in range(2))
    for first, pair in ((1, old), (5, new)):
        parent = None
        for number, page in enumerate(pair):
            assert page
            parent = pages.keep(page, parent, [first + 2 * number, first + 2 * number + 1])
        pages.release([page for page in pair if page])
    assert len(pages.find([1, 2, 3, 4]).whole) == 2
    pages.take()
    assert len(pages.find([1, 2, 3, 4]).whole) == 1
    assert len(pages.find([5, 6, 7, 8]).whole) == 2
    pages.take()
    assert pages.find([1, 2]).whole == []
