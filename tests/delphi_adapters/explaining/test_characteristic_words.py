"""Words that stand out: what a word is, and scores worked out by hand."""

import math

import pytest

from delphi_adapters.explaining.characteristic_words import (
    PRIOR,
    Corpus,
    characteristic,
    log_odds_z,
    words,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("She doesn't, he can’t.", ["She", "doesn't", ",", "he", "can’t", "."]),  # noqa: RUF001
        ("def __init__(self):\n    x", ["def", "__init__", "(", "self", "):", "\n", "x"]),
        ("我喜欢学习。", ["我喜", "喜欢", "欢学", "学习", "。"]),
        ("学", ["学"]),
        ("カタカナの語", ["カタカナ", "の語"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("이 문장은", ["이", "문장은"]),
        ("Straße ÉTÉ", ["Straße", "ÉTÉ"]),
        ("👩‍👩‍👧 3.5", ["👩‍👩‍👧", "3.5"]),
        (" \t ", []),
    ],
)
def test_words_of_many_scripts(text, found):
    assert [word.text for word in words(text)] == found
    for word in words(text):
        assert word.text == "\n" or text[word.start : word.end] == word.text


def test_a_word_counts_the_same_in_any_case_and_composition():
    keys = {word.key for word in words("ÉTÉ été e\u0301te\u0301 Été")}
    assert keys == {"été"}


def test_the_score_is_that_of_the_formula():
    # 3 of 10 words here, 20 of 1,000 in the corpus.
    prior = PRIOR * 20 / 1000
    here = math.log((3 + prior) / (10 + PRIOR - 3 - prior))
    there = math.log((20 + prior) / (1000 + PRIOR - 20 - prior))
    expected = (here - there) / math.sqrt(1 / (3 + prior) + 1 / (20 + prior))
    assert log_odds_z(3, 10, 20, 1000) == pytest.approx(expected)
    assert log_odds_z(3, 10, 300, 1000) == pytest.approx(0, abs=1e-9)
    assert log_odds_z(1, 10, 300, 1000) < 0


def test_words_of_the_passages_stand_out_and_those_of_all_texts_do_not():
    corpus = Corpus()
    corpus.add(["the cat and the dog and the bird"] * 400 + ["the Harbour of the north"] * 4)
    passages = [words("the harbour and the ship"), words("a Harbour, the ship"), words("Harbour")]
    found = characteristic(passages, corpus.counts)
    assert {(one.word, one.passages, one.corpus) for one in found} == {
        ("Harbour", 3, 4),
        ("ship", 2, 0),
    }
    assert [one.z for one in found] == sorted((one.z for one in found), reverse=True)
    assert all(one.z >= 2 for one in found)


def test_what_one_passage_repeats_counts_once():
    corpus = Corpus()
    corpus.add(["a plain text of many words"] * 500)
    passages = [words("ox ox ox ox ox"), words("an elk"), words("an elk")]
    found = [one.word for one in characteristic(passages, corpus.counts)]
    assert set(found) == {"an", "elk"}


def test_order_of_passages_and_words_does_not_matter():
    corpus = Corpus()
    corpus.add(["one two three four five six seven eight"] * 300)
    passages = [words("alpha beta gamma"), words("gamma Alpha beta"), words("beta gamma alpha")]
    found = characteristic(passages, corpus.counts)
    turned = [passage[::-1] for passage in passages[::-1]]
    assert characteristic(turned, corpus.counts) == found
    assert [one.word for one in found] == ["alpha", "beta", "gamma"]
    assert characteristic([], corpus.counts) == []
