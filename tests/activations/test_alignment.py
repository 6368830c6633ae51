from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers_for_tests import (
    SENTENCES,
    byte_level_tokenizer,
    metaspace_tokenizer,
    unigram_tokenizer,
    wordpiece_tokenizer,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from sparsify_crosscoder.activations.algorithm1 import algorithm1
from sparsify_crosscoder.activations.alignment import (
    align_offsets,
    align_tokens,
    completed,
    content_ends,
    content_reach,
)

TOKENIZERS = {
    "byte level": byte_level_tokenizer(vocab_size=400),
    "small byte level": byte_level_tokenizer(vocab_size=290, bos=True, trim_offsets=False),
    "metaspace": metaspace_tokenizer(vocab_size=300, bos=True),
    "prepending metaspace": metaspace_tokenizer(vocab_size=200, prepend=True),
    "unigram": unigram_tokenizer(),
    "wordpiece": wordpiece_tokenizer(),
}
EQUAL_TO_BYTE_LEVEL = byte_level_tokenizer(vocab_size=400)
BYTE_LEVEL = [TOKENIZERS["byte level"], TOKENIZERS["small byte level"]]

untimed = settings(deadline=None)
words = st.sampled_from(" ".join(SENTENCES).split(" "))
texts = st.lists(
    st.one_of(
        words,
        st.sampled_from(
            [" ", "\n\n", "\t", "é", "😀", "👩‍👩‍👧", "한", "龘", "’", "½", "─", "</s>"]  # noqa: RUF001
        ),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    ),
    max_size=12,
).map(" ".join)
several = st.lists(st.sampled_from(sorted(TOKENIZERS)), min_size=2, max_size=3, unique=True)
english = st.lists(
    st.sampled_from([word for word in " ".join(SENTENCES).split(" ") if word.isascii()]),
    min_size=1,
    max_size=12,
).map(" ".join)


def cutting(pattern: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the matches of `pattern` and what lies between them."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def read_so_far(text: str, tokenizer: PreTrainedTokenizerFast) -> dict[int, int]:
    """Token by token, in plain Python: content end -> the token that completes it."""
    encoding = tokenizer(text, return_offsets_mapping=True)
    special = {
        id for id, token in tokenizer.added_tokens_decoder.items() if token.content != "<unk>"
    }
    offsets = encoding["offset_mapping"]
    ends = {}
    for index, (id, (start, stop)) in enumerate(zip(encoding["input_ids"], offsets, strict=True)):
        end = len(text[:stop].rstrip())
        rest = [begin for begin, behind in offsets[index + 1 :] if behind > begin]
        if id not in special and end > start and all(begin >= end for begin in rest):
            ends[end] = index
    return ends


def test_a_number_cut_in_two_is_paired_at_its_last_token():
    alignment = align_tokens("1989", [cutting(r"\d+"), cutting(r"\d{3}")])
    assert alignment.indices == [[0], [1]]
    assert alignment.ends == [4]


def test_a_sentence_worked_out_by_hand():
    # In| 1989| it| fell      In| |198|9| it fe|ll
    coarse, fine = cutting(r" ?\w+"), cutting(r"\d{3}|\d| it fe| ")
    alignment = align_tokens("In 1989 it fell", [coarse, fine])
    assert alignment.indices == [[0, 1, 3], [0, 3, 5]]
    assert alignment.ends == [2, 7, 15]


def test_white_space_may_belong_to_either_side_and_is_never_paired():
    # a |\n\n|b                a| \n|\nb
    alignment = align_tokens("a \n\nb ", [cutting(r"a |\n\n"), cutting(r"a| \n|\nb")])
    assert alignment.indices == [[0, 2], [0, 2]]
    assert alignment.ends == [1, 5]


def test_three_sources_meet_only_where_all_do():
    alignment = align_tokens("abcdef", [cutting("ab|cd"), cutting("abc|d"), cutting("[a-d]")])
    assert alignment.indices == [[1, 2], [1, 2], [3, 4]]
    assert alignment.ends == [4, 6]


def test_special_tokens_shift_the_indices_and_are_not_paired():
    plain, with_bos = byte_level_tokenizer(), byte_level_tokenizer(bos=True)
    alignment = align_tokens("the dog </s> is", [plain, with_bos])
    tokens = plain.convert_ids_to_tokens(plain("the dog </s> is")["input_ids"])
    assert alignment.indices[1] == [index + 1 for index in alignment.indices[0]]
    assert alignment.indices[0] == [i for i, t in enumerate(tokens) if t not in ("</s>", "Ġ")]


def test_a_character_split_into_bytes_is_paired_once_at_its_last_byte():
    # "ж" is two bytes in both byte alphabets and one unknown token behind <s> in WordPiece.
    sources = [TOKENIZERS[name] for name in ("byte level", "metaspace", "wordpiece")]
    alignment = align_tokens("ж", sources)
    assert alignment.indices == [[1], [2], [1]]
    assert alignment.ends == [1]


def test_a_prepended_space_is_not_taken_for_the_first_letter():
    prepending = TOKENIZERS["prepending metaspace"]
    assert prepending("Hx", return_offsets_mapping=True)["offset_mapping"][:2] == [(0, 1), (0, 1)]
    alignment = align_tokens("Hx", [prepending, cutting("[A-Z]")])
    assert alignment.indices == [[1, 2], [0, 1]]


def test_repeated_and_overlapping_spans_count_at_the_token_that_completes_them():
    text = "ab   cdxyz"
    offsets = np.array([(0, 2), (2, 5), (5, 8), (7, 8), (8, 9), (9, 10), (9, 10), (9, 10)])
    ends = content_ends(offsets, np.zeros(8, dtype=bool), content_reach(text))
    assert ends.tolist() == [2, -1, 8, 8, 9, 10, 10, 10]
    assert completed(ends, offsets).tolist() == [2, -1, -1, 8, 9, -1, -1, 10]


def test_of_several_tokens_with_one_end_the_last_is_taken():
    left, right = np.array([2, 5, 5, -1, 9]), np.array([5, 9, 9, 9])
    indices, ends = align_offsets([left, right])
    assert [index.tolist() for index in indices] == [[2, 4], [0, 3]]
    assert ends.tolist() == [5, 9]


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_text_without_content_has_an_empty_alignment(text):
    alignment = align_tokens(text, [TOKENIZERS["byte level"], TOKENIZERS["metaspace"]])
    assert alignment.indices == [[], []]
    assert alignment.ends == []


def test_a_single_tokenizer_is_refused():
    with pytest.raises(ValueError, match="at least two sources, got 1"):
        align_tokens("text", [TOKENIZERS["metaspace"]])


def test_a_tokenizer_without_offsets_is_named():
    with pytest.raises(ValueError, match=r"source 1 .*ByT5Tokenizer.*fast version"):
        align_tokens("text", [TOKENIZERS["metaspace"], ByT5Tokenizer()])


@untimed
@given(texts, several)
def test_pairs_are_all_common_ends_in_order(text, names):
    sources = [TOKENIZERS[name] for name in names]
    alignment = align_tokens(text, sources)
    expected = [read_so_far(text, source) for source in sources]
    common = sorted(set.intersection(*map(set, expected)))
    assert alignment.ends == common
    assert alignment.indices == [[ends[end] for end in common] for ends in expected]
    for index in alignment.indices:
        assert all(left < right for left, right in pairwise(index))


@untimed
@given(texts)
def test_byte_level_pairs_are_where_both_have_decoded_the_same_text(text):
    text = text.replace("\ufffd", "")
    ends = []
    for tokenizer in BYTE_LEVEL:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        read = (tokenizer.decode(ids[:stop]) for stop in range(1, len(ids) + 1))
        ends.append({len(prefix.rstrip()) for prefix in read if text.startswith(prefix)})
    closing = {end for end in ends[0] & ends[1] if not text[:end].endswith("</s>")}
    assert align_tokens(text, BYTE_LEVEL).ends == sorted(closing - {0})


@untimed
@given(texts, several)
def test_the_order_of_the_sources_does_not_matter(text, names):
    forward = align_tokens(text, [TOKENIZERS[name] for name in names])
    backward = align_tokens(text, [TOKENIZERS[name] for name in reversed(names)])
    assert forward.ends == backward.ends
    assert forward.indices == backward.indices[::-1]


@untimed
@given(english)
def test_equal_tokenizers_give_the_identity_on_content_tokens(text):
    first, second = TOKENIZERS["byte level"], EQUAL_TO_BYTE_LEVEL
    alignment = align_tokens(text, [first, second])
    ids = first(text)["input_ids"]
    content = [index for index, id in enumerate(ids) if first.decode([id]).strip()]
    assert alignment.indices == [content, content]


@untimed
@given(english, st.permutations(["byte level", "small byte level", "metaspace"]))
def test_it_equals_algorithm_1_where_that_reaches_the_end(text, names):
    a, b = (TOKENIZERS[name] for name in names[:2])
    alignment = align_tokens(text, [a, b])
    pairs = algorithm1(a(text)["input_ids"], b(text)["input_ids"], a, b)
    assert pairs == list(zip(*alignment.indices, strict=True))


def test_algorithm_1_on_the_papers_example():
    tokenizer = TOKENIZERS["byte level"]
    year, parts = tokenizer(" 1989")["input_ids"], tokenizer(" 1 9 8 9")["input_ids"]
    digits = [id for id in parts if tokenizer.decode([id]).strip()]
    assert len(year) < len(digits) == 4
    pairs = algorithm1(year, digits, tokenizer, tokenizer)
    assert pairs[-1] == (len(year) - 1, 3)


def test_algorithm_1_makes_wrong_pairs_behind_split_characters_and_alignment_does_not():
    a, b = BYTE_LEVEL
    text = "이 개 dog"
    pairs = algorithm1(a(text)["input_ids"], b(text)["input_ids"], a, b)
    alignment = align_tokens(text, [a, b])
    assert set(pairs) - set(zip(*alignment.indices, strict=True))
    assert alignment.ends[-1] == len(text)
