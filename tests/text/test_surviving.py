from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sparsify_crosscoder.text.surviving import surviving_parts

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
]
TEXTS = st.lists(st.sampled_from([*WORDS, "\n", "  "]), max_size=40).map(" ".join)


def strings(original, altered, exact=True):
    parts = surviving_parts(original, altered, exact)
    assert all(altered[a:b] == original[at : at + b - a] for a, b, at in parts)
    return [altered[a:b] for a, b, _ in parts]


@given(TEXTS, TEXTS, TEXTS, st.booleans())
def test_parts_are_equal_and_in_the_order_of_both(before, middle, behind, exact):
    parts = surviving_parts(before + middle + behind, behind + before + "x" + behind, exact)
    for (_, stop, at), (start, _, later) in pairwise(parts):
        assert stop <= start
        assert at < later
    strings(before + middle + behind, behind + before + "x" + behind, exact)


def test_what_the_reasoning_says_too_is_not_taken_for_the_answer():
    answer = "The river turns to the north there."
    original = f"<think>{answer} I am sure.</think>{answer}"
    ((start, stop, at),) = surviving_parts(original, answer, exact=True)
    assert (start, stop, at) == (0, len(answer), len(original) - len(answer))


def test_a_passage_that_occurs_twice_is_no_anchor():
    line = "one and the same line of text"
    assert strings(f"{line} a {line} b", f"c {line} d", exact=False) == []
    other = "but this one is there only once"
    assert strings(f"{line} {line} {other}", f"x {other} y", exact=False) == [other]


def test_without_its_place_only_long_parts_are_believed():
    assert strings("Because.", "assistant Because.", exact=False) == []
    assert strings("Because.", "Because.", exact=True) == ["Because."]


def test_a_long_message_is_compared_in_little_time():
    original = " ".join(f"word{number}" for number in range(30_000))
    kept = original[100_000:200_000].strip()
    assert strings("x" + original, kept + " and more") == [kept]
