"""The pairs that are found are those that comparing all with all finds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_training.data.near_duplicates import FORM_TEXTS, near_duplicates

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]


def shingles(text: str, length: int) -> set[tuple[str, ...]]:
    words = text.split()
    length = min(length, len(words))
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def compared_with_all(texts: list[str], similarity: float, length: int) -> dict[int, tuple[int, float]]:
    found: dict[int, tuple[int, float]] = {}
    for place, text in enumerate(texts):
        own = shingles(text, length)
        others = {kept: shingles(texts[kept], length) for kept in range(place) if kept not in found}
        measured = [(kept, len(own & other) / len(own | other)) for kept, other in others.items()]
        best = max(measured, key=lambda pair: pair[1], default=(0, 0.0))
        if best[1] >= similarity:
            found[place] = best
    return found


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), max_size=12),
    st.sampled_from([0.1, 0.5, 0.7, 0.9, 1.0]),
    st.integers(1, 3),
)
def test_it_is_exact(texts: list[str], similarity: float, length: int) -> None:
    found = near_duplicates(texts, similarity=similarity, shingle_words=length)
    assert found == compared_with_all(texts, similarity, length)


def test_case_and_punctuation_do_not_tell_texts_apart() -> None:
    texts = ["Add two numbers, a and b!", "add two numbers a and b", "...", "?"]
    assert near_duplicates(texts, similarity=1, shingle_words=5) == {1: (0, 1.0), 3: (2, 1.0)}


def test_what_most_texts_have_makes_them_no_more_alike() -> None:
    form = " write the whole class solution all that stands before it here is there already"
    texts = [f"x{number} y{number} z{number}{form}" for number in range(FORM_TEXTS)]
    assert not near_duplicates(texts, similarity=0.7, shingle_words=1)
    assert len(near_duplicates(texts[1:], similarity=0.7, shingle_words=1)) > FORM_TEXTS / 2, (
        "too few to tell"
    )
    copies = FORM_TEXTS * [form]
    assert len(near_duplicates(copies, similarity=0.7, shingle_words=1)) == FORM_TEXTS - 1, (
        "nothing else is there"
    )
