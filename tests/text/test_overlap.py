"""Which texts share passages, against a plain search."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify_crosscoder.text import overlap as module
from sparsify_crosscoder.text.overlap import SPAN, overlap


def words(count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("abcdefgh"), 5)) for _ in range(count))


def texts(*plain: str) -> Dataset:
    return Dataset.from_dict({"text": list(plain)})


def test_a_copy_is_found_whole_whatever_its_case_and_white_space():
    one, other = words(60, 0), words(60, 1)
    again = one.upper().replace(" ", "\n  ")
    found = overlap(texts(again, other, one[:50]), texts(words(60, 2), one))
    assert found.shared.tolist() == [1.0, 0.0, 0.0]
    assert found.whole.tolist() == found.any.tolist() == [True, False, False]


def test_a_passage_is_found_in_the_middle_of_another_text_and_a_shorter_one_is_not():
    passage = words(100, 0).replace(" ", "")
    mine = [f"{words(40, 1)}y{passage[:n]}y{words(40, 2)}" for n in (SPAN, SPAN - 1)]
    found = overlap(texts(*mine), texts(f"{words(70, 3)}z{passage}z{words(70, 4)}"))
    assert found.any.tolist() == [True, False]
    assert 0 < found.shared[0] < 0.01 and not found.whole[0]


def test_a_text_shorter_than_a_passage_is_compared_whole():
    found = overlap(texts("Short.", "Shorter.", "", " \n"), texts("short .", ""))
    assert found.any.tolist() == [True, False, False, False]


def test_conversations_are_compared_by_what_was_said():
    said = words(60, 0)
    chat = [{"role": "user", "content": said[:200]}, {"role": "assistant", "content": said[200:]}]
    chats = Dataset.from_dict({"messages": [chat]})
    assert overlap(chats, texts(said)).whole.tolist() == [True]
    assert overlap(texts(said), chats).whole.tolist() == [True]
    mixed = Dataset.from_dict({"text": [said, None], "messages": [None, chat]})
    assert overlap(mixed, texts(words(60, 1))).any.tolist() == [False, False]


def test_every_part_of_what_was_seen_counts(monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 2)
    seen = [words(40, seed) for seed in range(7)]
    found = overlap(texts(seen[6], words(40, 9), seen[0], seen[3]), texts(*seen))
    assert found.whole.tolist() == [True, False, True, True]


def test_nothing_is_seen_in_no_texts():
    assert overlap(texts("a", words(60, 0)), texts()).any.tolist() == [False, False]


def test_half_a_character_and_letters_beyond_the_first_plane_are_text_like_any():
    odd = "\ud83d" + "😀中" * 80
    assert len(module._spans(odd)) == len(odd) - SPAN + 1
    assert overlap(texts("😀中" * 80), texts("x" + "😀中" * 80)).whole.tolist() == [True]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab ", max_size=14), min_size=1, max_size=5), st.text("aAb ", max_size=30))
def test_what_is_shared_is_what_a_search_finds(mine, seen):
    size = 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPAN", size)
        found = overlap(texts(*mine), texts(seen))
    haystack = "".join(seen.lower().split())
    for text, shared in zip(mine, found.shared, strict=True):
        needle = "".join(text.split())
        spans = [needle[i : i + size] for i in range(len(needle) - size + 1)] or [needle]
        short = len(needle) < size
        hits = [needle == haystack if short else span in haystack for span in spans]
        assert shared == (np.mean(hits) if needle else 0)
