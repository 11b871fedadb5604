"""Texts that are nearly an earlier one: exactly, by Jaccard similarity of their shingles, without comparing all pairs.

A shingle is a run of words. Two sets of similarity t share at least t of the shingles of each, so, sorted in one order,
they share one among the first n - ceil(t n) + 1 of each. With rare shingles first hardly any other pairs do (prefix
filtering: Chaudhuri et al. 2006, Bayardo et al. 2007). MinHash estimates what this computes, and pays off when millions
of texts do not fit into memory. Standard library only.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Sequence

from tqdm import tqdm

from pangu_training.data.contamination import runs, words_in

FORM_TEXTS = 100  # of fewer texts nobody knows whether what most of them have is their form
COUNTERS = 1 << 22  # shingles that share a counter make the order a little worse
ROUNDING = 1e-9  # 0.07 * 100 is a little more than 7


def near_duplicates(
    texts: Sequence[str], *, similarity: float, shingle_words: int
) -> dict[int, tuple[int, float]]:
    """Places of the texts that go -> the place of the kept text that is most similar, and how similar that is.

    A text goes when it is so similar to one before it that stays. Shingles that more than half of all texts have are
    not compared: they are the texts' form, like a request that all end with.
    """
    shingles = _rarest_first(texts, shingle_words)
    found: dict[int, tuple[int, float]] = {}
    kept_by_shingle: dict[int, list[int]] = defaultdict(list)
    for place, ordered in enumerate(tqdm(shingles, desc="near duplicates", unit="row", disable=None)):
        own, size = set(ordered), len(ordered)
        prefix = ordered[: size - math.ceil(similarity * size - ROUNDING) + 1]
        best = 0, 0.0
        for other in sorted({other for shingle in prefix for other in kept_by_shingle.get(shingle, ())}):
            other_size = len(shingles[other])
            if similarity * size <= other_size <= size / similarity:
                common = sum(shingle in own for shingle in shingles[other])
                best = max(best, (other, common / (size + other_size - common)), key=lambda pair: pair[1])
        if best[1] >= similarity:
            found[place] = best
        else:
            for shingle in prefix:
                kept_by_shingle[shingle].append(place)
    return found


def _rarest_first(texts: Sequence[str], length: int) -> list["array[int]"]:
    """Each text's shingles, as hashes, without those of the form unless it has no others."""
    counts = array("I", bytes(array("I").itemsize * COUNTERS))
    shingles = []
    for text in texts:
        words = words_in(text)
        # a text that is shorter than a shingle is one
        shingles.append(array("q", {hash(run) for run in runs(words, min(length, len(words)))}))
        for shingle in shingles[-1]:
            counts[shingle % COUNTERS] += 1
    most = len(texts) / 2 if len(texts) >= FORM_TEXTS else len(texts)
    for place, row in enumerate(shingles):
        own = [shingle for shingle in row if counts[shingle % COUNTERS] <= most] or row
        ordered = sorted(own, key=lambda shingle: (counts[shingle % COUNTERS], shingle))
        shingles[place] = array("q", ordered)
    return shingles
