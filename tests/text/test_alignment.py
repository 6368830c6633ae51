from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast

from sparsify_crosscoder.text.algorithm1 import algorithm1, align_reference
from sparsify_crosscoder.text.alignment import (
    AlignedTokens,
    NonContent,
    Reason,
    align_batch,
    align_tokens,
)
from sparsify_crosscoder.text.chat import plain_text
from tests.support.tokenizers import (
    CHATML,
    SENTENCES,
    byte_level_tokenizer,
    metaspace_tokenizer,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

BYTES = {
    "byte level": byte_level_tokenizer(vocab_size=400),
    "small byte level": byte_level_tokenizer(vocab_size=290, bos=True, trim_offsets=False),
    "metaspace": metaspace_tokenizer(vocab_size=300, bos=True),
    "prepending metaspace": metaspace_tokenizer(vocab_size=200, prepend=True),
    "byt5": ByT5Tokenizer(),
}
"""Tokenizers whose tokens spell the text."""
REWRITING = {
    "composing byte level": byte_level_tokenizer(vocab_size=350, normalizer=normalizers.NFC()),
    "lower-casing byte level": byte_level_tokenizer(normalizer=normalizers.Lowercase()),
    "metaspace without bytes": metaspace_tokenizer(byte_fallback=False),
    "unigram": unigram_tokenizer(),
    "wordpiece": wordpiece_tokenizer(),
}
TOKENIZERS = BYTES | REWRITING
EQUAL_TO_BYTE_LEVEL = byte_level_tokenizer(vocab_size=400)

PIECES = [
    *("😀", "👩\u200d👩\u200d👧", "🇰🇷", "👍🏽", "1\ufe0f\u20e3", "é", "e\u0301", "a\u0323\u0302"),
    *("A\u030a\u0323", "\u212b", "ﬁ", "\u1112\u1161\u11ab", "한국어", "龘", "这个句子", "ひらがな"),
    *("ｶﾅ", "שלום", "العربية", "नमस्ते", "İ", "ß", "½", "→∀", "─┼│", "“so”", "it\u2019s"),
    *("\u200b", "\u200d", "\ufeff", "\u00ad", "\u3000", "\u2003", "\u00a0", "\x85", "\x00"),
    *("\ufffd", "\r\n", "\n\n", "\t", "  ", "x" * 60, "=" * 40, "def f(x):\n    return x"),
    *("3.14159", "</s>", "<unk>", "<0x0A>", "▁", "##ing"),
]
untimed = settings(deadline=None)
texts = st.lists(
    st.one_of(
        st.sampled_from(" ".join(SENTENCES).split(" ")),
        st.sampled_from(PIECES),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    ),
    max_size=12,
).flatmap(lambda parts: st.sampled_from([" ".join(parts), "".join(parts)]))
several = st.lists(st.sampled_from(sorted(TOKENIZERS)), min_size=2, max_size=3, unique=True)
spelling = st.lists(st.sampled_from(sorted(BYTES)), min_size=2, max_size=2, unique=True)
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


def byte_alphabet() -> dict[str, int]:
    """The characters of byte-level vocabularies, as the tokenizers library writes them."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = {}
    one_to_three = [*range(0x800), *range(0x800, 0xD800, 0x3F), *range(0xE000, 0x10000, 0x3F)]
    for code in [*one_to_three, *range(0x10000, 0x110000, 0x10000)]:
        written = byte_level.pre_tokenize_str(chr(code))
        if written:
            alphabet |= dict(zip(written[0][0], chr(code).encode(), strict=True))
    return alphabet


ALPHABET = byte_alphabet()


def spelled(token: str, name: str) -> bytes:
    if name == "byt5":
        return token.encode("latin-1")
    if "metaspace" not in name:
        return bytes(ALPHABET[letter] for letter in token)
    if token.startswith("<0x") and len(token) == 6:
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def content_read(text: str, name: str) -> dict[int, int] | None:
    """Token by token, in plain Python: how many bytes of content were read with each.

    Only tokens that have content; None where the tokens do not spell the text.
    """
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prefix = tokenizer("a")["input_ids"].index(
        tokenizer("a", add_special_tokens=False)["input_ids"][0]
    )
    added = {id: token.content.encode() for id, token in tokenizer.added_tokens_decoder.items()}
    tokens = [added.get(id) or spelled(tokenizer.convert_ids_to_tokens(id), name) for id in ids]
    if tokens and tokens[0].startswith(b" ") and not text.startswith(" "):
        tokens[0] = tokens[0][1:]
    if b"".join(tokens) != text.encode():
        return None
    visible = [not character.isspace() for character in text for _ in character.encode()]
    special = {*added, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    result, stop = {}, 0
    for index, (id, token) in enumerate(zip(ids, tokens, strict=True)):
        start, stop = stop, stop + len(token)
        if id not in special and any(visible[start:stop]):
            result[prefix + index] = sum(visible[:stop])
    return result


def pairs_of(alignment: AlignedTokens) -> list[tuple[int, ...]]:
    return list(zip(*alignment.indices, strict=True))


class TestKnownValues:
    def test_a_number_cut_in_two_is_paired_at_its_last_token(self):
        alignment = align_tokens("1989", [cutting(r"\d+"), cutting(r"\d{3}")])
        assert alignment.indices == [[0], [1]]
        assert alignment.ends == [4]

    def test_a_sentence_worked_out_by_hand(self):
        # In| 1989| it| fell      In| |198|9| it fe|ll
        coarse, fine = cutting(r" ?\w+"), cutting(r"\d{3}|\d| it fe| ")
        alignment = align_tokens("In 1989 it fell", [coarse, fine])
        assert alignment.indices == [[0, 1, 3], [0, 3, 5]]
        assert alignment.ends == [2, 7, 15]

    def test_white_space_may_belong_to_either_side_and_is_never_paired(self):
        # a |\n\n|b                a| \n|\nb
        alignment = align_tokens("a \n\nb ", [cutting(r"a |\n\n"), cutting(r"a| \n|\nb")])
        assert alignment.indices == [[0, 2], [0, 2]]
        assert alignment.ends == [1, 5]

    def test_three_sources_meet_only_where_all_do(self):
        sources = [cutting("ab|cd"), cutting("abc|d"), cutting("[a-d]")]
        alignment = align_tokens("abcdef", sources)
        assert alignment.indices == [[1, 2], [1, 2], [3, 4]]
        assert alignment.ends == [4, 6]

    def test_special_tokens_shift_the_indices_and_are_not_paired(self):
        plain, with_bos = byte_level_tokenizer(), byte_level_tokenizer(bos=True)
        alignment = align_tokens("the dog </s> is", [plain, with_bos])
        tokens = plain.convert_ids_to_tokens(plain("the dog </s> is")["input_ids"])
        assert alignment.indices[1] == [index + 1 for index in alignment.indices[0]]
        assert alignment.indices[0] == [i for i, t in enumerate(tokens) if t not in ("</s>", "Ġ")]

    def test_bytes_of_one_character_are_paired_where_both_sources_end_at_the_same_byte(self):
        # "ж" is two bytes in both alphabets, and behind a bos token in the second.
        alignment = align_tokens("ж", [TOKENIZERS["byte level"], TOKENIZERS["metaspace"]])
        assert alignment.indices == [[0, 1], [1, 2]]
        assert alignment.ends == [1, 1]

    def test_a_character_that_one_source_reads_whole_is_paired_at_its_last_byte(self):
        # The third source knows "ж" as one unknown token behind <s>.
        names = ("byte level", "metaspace", "wordpiece")
        alignment = align_tokens("ж", [TOKENIZERS[name] for name in names])
        assert alignment.indices == [[1], [2], [1]]
        assert alignment.ends == [1]

    def test_a_prepended_space_is_not_taken_for_the_first_letter(self):
        prepending = TOKENIZERS["prepending metaspace"]
        offsets = prepending("Hx", return_offsets_mapping=True)["offset_mapping"]
        assert offsets[:2] == [(0, 1), (0, 1)]
        alignment = align_tokens("Hx", [prepending, cutting("[A-Z]")])
        assert alignment.indices == [[1, 2], [0, 1]]

    def test_a_composed_character_is_not_paired_with_its_first_half(self):
        # The composing tokenizer reads "é" with the "e", whose offsets do not show it.
        text = "cafe\u0301 the"
        composing, letters = TOKENIZERS["composing byte level"], cutting(".")
        offsets = composing(text, return_offsets_mapping=True)["offset_mapping"]
        assert max(stop for _, stop in offsets if stop <= 5) == 4
        alignment = align_tokens(text, [composing, letters])
        assert 4 not in alignment.ends
        assert alignment.ends[alignment.ends.index(5) :][:1] == [5]
        assert alignment.indices[1][alignment.ends.index(5)] == 4

    def test_reordered_marks_are_paired_only_behind_all_of_them(self):
        # NFC puts the dot below first: one source reads "Ạ" where the other reads "Å".
        text = "x\u00c5\u0301\u0323y"
        composing, letters = TOKENIZERS["composing byte level"], cutting(".")
        assert align_tokens(text, [composing, letters]).ends == [1, 4, 5]

    def test_split_characters_of_a_rewritten_text_are_still_exact_where_they_are_spelled(self):
        composing, plain = TOKENIZERS["composing byte level"], TOKENIZERS["byte level"]
        split = align_tokens("龘", [composing, plain])
        assert len(split.ends) > 1
        # NFC rewrites the Angstrom sign, and nothing else.
        rewritten = align_tokens("\u212b 龘", [composing, plain])
        assert rewritten.ends == [1] + [3] * len(split.ends)

    def test_fragments_of_white_space_are_white_space(self):
        text = "the\u2003dog"
        source, letters = BYTES["byte level"], cutting("\u2003|\\w+")
        alignment = align_tokens(text, [source, letters])
        fragments = [i for i, token in enumerate(source.tokenize(text)) if token[0] == "â"]
        assert fragments
        assert set(alignment.left_out[0][Reason.WHITE_SPACE]) > set(fragments)
        assert alignment.ends == [3, 7]

    @pytest.mark.parametrize("text", ["", " \n\t"])
    def test_text_without_content_has_an_empty_alignment(self, text):
        alignment = align_tokens(text, [TOKENIZERS["byte level"], TOKENIZERS["metaspace"]])
        assert alignment.indices == [[], []]
        assert alignment.ends == []


class TestProperties:
    @untimed
    @given(texts, several)
    def test_indices_increase_and_pairs_lie_in_the_same_content(self, text, names):
        alignment = align_tokens(text, [TOKENIZERS[name] for name in names])
        assert len({len(index) for index in [*alignment.indices, alignment.ends]}) == 1
        for index in alignment.indices:
            assert all(left < right for left, right in pairwise(index))
        assert all(left <= right for left, right in pairwise(alignment.ends))
        assert all(not text[end - 1].isspace() for end in alignment.ends)

    @untimed
    @given(texts, several)
    def test_every_pair_ends_at_the_same_character_by_the_tokenizers_own_offsets(self, text, names):
        alignment = align_tokens(text, [TOKENIZERS[name] for name in names])
        for name, index in zip(names, alignment.indices, strict=True):
            if not TOKENIZERS[name].is_fast:
                continue
            offsets = TOKENIZERS[name](text, return_offsets_mapping=True)["offset_mapping"]
            for token, end in zip(index, alignment.ends, strict=True):
                # Composed characters end before `end` by their offsets, trailing space behind it.
                start, stop = offsets[token]
                rest = [begin for begin, behind in offsets[token + 1 :] if behind > begin]
                assert start < end <= max(stop, min(rest, default=len(text)))

    @untimed
    @given(texts, spelling)
    @example("이 문장은 개입니다", ["byte level", "small byte level"])
    @example("a\u2003b\u3000c", ["byte level", "byt5"])
    def test_pairs_are_all_positions_where_both_have_read_the_same_bytes(self, text, names):
        read = [content_read(text, name) for name in names]
        if None in read:
            return
        alignment = align_tokens(text, [TOKENIZERS[name] for name in names])
        tokens = [{now: index for index, now in side.items()} for side in read]
        common = sorted(tokens[0].keys() & tokens[1].keys())
        assert pairs_of(alignment) == [tuple(side[now] for side in tokens) for now in common]

    @untimed
    @given(texts, spelling)
    def test_it_equals_algorithm_1_with_byte_exact_decoding_where_that_succeeds(self, text, names):
        if any(character.isspace() and not character.isascii() for character in text):
            return  # fragments of white space are content to Algorithm 1
        sources = [TOKENIZERS[name] for name in names]
        reference = align_reference(text, sources, byte_exact=True)
        if reference.finished and None not in [content_read(text, name) for name in names]:
            assert align_tokens(text, sources).indices == reference.indices

    @untimed
    @given(english, st.permutations(["byte level", "small byte level", "metaspace"]))
    def test_it_equals_algorithm_1_as_printed_on_plain_english(self, text, names):
        sources = [TOKENIZERS[name] for name in names[:2]]
        reference = align_reference(text, sources)
        assert reference.finished
        assert align_tokens(text, sources).indices == reference.indices

    @untimed
    @given(texts, several)
    def test_the_order_of_the_sources_does_not_matter(self, text, names):
        forward = align_tokens(text, [TOKENIZERS[name] for name in names])
        backward = align_tokens(text, [TOKENIZERS[name] for name in reversed(names)])
        assert forward.ends == backward.ends
        assert forward.indices == backward.indices[::-1]

    @untimed
    @given(texts, st.sampled_from(sorted(TOKENIZERS)))
    def test_equal_tokenizers_give_the_identity_on_content_tokens(self, text, name):
        alignment = align_tokens(text, [TOKENIZERS[name], TOKENIZERS[name], TOKENIZERS[name]])
        left_out = alignment.left_out[0]
        assert left_out.keys() <= {Reason.SPECIAL, Reason.WHITE_SPACE}
        others = {index for indices in left_out.values() for index in indices}
        identity = [i for i in range(len(alignment.input_ids[0])) if i not in others]
        assert alignment.indices == [identity] * 3

    @untimed
    @given(texts)
    def test_a_tokenizer_loaded_twice_is_equal_to_itself(self, text):
        first, second = TOKENIZERS["byte level"], EQUAL_TO_BYTE_LEVEL
        alignment = align_tokens(text, [first, second])
        assert alignment.indices[0] == alignment.indices[1]
        tokens = [first.decode([id]).strip() for id in alignment.input_ids[0]]
        content = {i for i, token in enumerate(tokens) if token.strip(" \ufffd")}
        specials = set(alignment.left_out[0].get(Reason.SPECIAL, []))
        assert content - specials <= set(alignment.indices[0])

    @untimed
    @given(st.lists(texts, max_size=5), several)
    def test_a_batch_is_aligned_as_its_texts_are(self, batch, names):
        sources = [TOKENIZERS[name] for name in names]
        together = align_batch(batch, sources)
        for text, alignment in zip(batch, together, strict=True):
            alone = align_tokens(text, sources)
            assert (alignment.indices, alignment.ends) == (alone.indices, alone.ends)
            assert alignment.input_ids == alone.input_ids
            assert [r.tolist() for r in alignment.reasons] == [r.tolist() for r in alone.reasons]

    @untimed
    @given(texts, several)
    def test_input_ids_are_what_the_tokenizers_give_and_every_token_has_its_reason(
        self, text, names
    ):
        alignment = align_tokens(text, [TOKENIZERS[name] for name in names])
        for source, name in enumerate(names):
            if name == "byt5" and text.rstrip().endswith("</s>"):
                continue  # it alone then adds none
            assert alignment.input_ids[source] == TOKENIZERS[name](text)["input_ids"]
            left_out = [index for some in alignment.left_out[source].values() for index in some]
            every = sorted(left_out + alignment.indices[source])
            assert every == list(range(len(alignment.input_ids[source])))

    @untimed
    @given(texts, several)
    def test_every_text_is_aligned_to_its_end(self, text, names):
        text += " dog"
        alignment = align_tokens(text, [TOKENIZERS[name] for name in names])
        assert alignment.ends[-1] == len(text)


class TestNonContent:
    def test_a_first_token_can_be_left_out_for_one_source(self):
        source = BYTES["byte level"]
        rules = [NonContent(), NonContent(first=True)]
        alignment = align_tokens("the dog", [source, source], non_content=rules)
        assert alignment.left_out[1] == {Reason.FIRST: [0]}
        assert alignment.left_out[0] == {Reason.INSIDE_WINDOW: [0]}
        assert alignment.indices[0][0] == 1

    def test_bos_is_the_first_token_where_there_is_one(self):
        sources = [BYTES["byte level"], BYTES["small byte level"]]
        alignment = align_tokens("the dog", sources, non_content=NonContent(first=True))
        usual = align_tokens("the dog", sources)
        assert alignment.left_out[0][Reason.FIRST] == [0]
        assert Reason.FIRST not in alignment.left_out[1]
        assert alignment.left_out[1][Reason.SPECIAL] == [0]
        assert pairs_of(alignment) == [pair for pair in pairs_of(usual) if pair[0] != 0]

    def test_further_ids_are_left_out_and_the_rest_is_unchanged(self):
        source, other = BYTES["byte level"], BYTES["metaspace"]
        text = "the dog the fox"
        the = source(text)["input_ids"][0]
        rules = [NonContent(token_ids=frozenset([the])), NonContent()]
        alignment = align_tokens(text, [source, other], non_content=rules)
        usual = align_tokens(text, [source, other])
        excluded = alignment.left_out[0][Reason.EXCLUDED]
        assert excluded == [i for i, id in enumerate(source(text)["input_ids"]) if id == the]
        assert pairs_of(alignment) == [p for p in pairs_of(usual) if p[0] not in excluded]

    def test_reasons_are_told_for_every_token(self):
        # ab| |c</s>  against  a|b| |c|</|s|>
        tokens = byte_level_tokenizer()
        alignment = align_tokens("ab </s>c", [tokens, cutting(".")])
        assert alignment.left_out[0][Reason.SPECIAL] == [
            tokens.tokenize("ab </s>c").index("</s>"),
        ]
        counts = Counter(Reason(int(reason)).name for reason in alignment.reasons[1])
        assert counts == {"PAIRED": 3, "WHITE_SPACE": 1, "INSIDE_WINDOW": 4}

    def test_as_many_rules_as_sources_are_wanted(self):
        with pytest.raises(ValueError, match=r"`non_content` has 1 entries for 2 sources"):
            align_tokens("a", list(BYTES.values())[:2], non_content=[NonContent()])


class TestTruncationAndPadding:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_truncated_input_is_the_tokenizers_own(self, side):
        sources = [byte_level_tokenizer(), byte_level_tokenizer(vocab_size=290, bos=True)]
        for source in sources:
            source.truncation_side = side
        text = SENTENCES[0]
        alignment = align_tokens(text, sources, max_length=[9, 14])
        whole = align_tokens(text, sources)
        for number, (source, length) in enumerate(zip(sources, [9, 14], strict=True)):
            expected = source(text, truncation=True, max_length=length)["input_ids"]
            assert alignment.input_ids[number] == expected
        shift = [
            len(whole.input_ids[i]) - len(alignment.input_ids[i]) if side == "left" else 0
            for i in range(2)
        ]
        # What both still read is paired as before; BOS stays where it was.
        kept = [
            (pair[0] - shift[0], pair[1] - shift[1])
            for pair in pairs_of(whole)
            if 0 <= pair[0] - shift[0] < 9 and 1 <= pair[1] - shift[1] < 14
        ]
        assert pairs_of(alignment) == kept != []
        assert any(Reason.UNREAD in left_out for left_out in alignment.left_out)

    def test_no_room_for_special_tokens_is_refused(self):
        with pytest.raises(ValueError, match="no room for the special tokens"):
            align_tokens("a", [BYTES["byte level"], BYTES["metaspace"]], max_length=0)

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_padded_input_is_the_tokenizers_own_and_indices_count_it(self, side):
        sources = [byte_level_tokenizer(), metaspace_tokenizer(bos=True)]
        for source in sources:
            source.padding_side = side
        texts = ["the dog", SENTENCES[0], ""]
        padded = align_batch(texts, sources, padding=True)
        alone = align_batch(texts, sources)
        for number, source in enumerate(sources):
            expected = source(texts, padding=True)["input_ids"]
            assert [text.input_ids[number] for text in padded] == expected
        for text, bare in zip(padded, alone, strict=True):
            assert text.ends == bare.ends
            for number in range(2):
                ids, bare_ids = text.input_ids[number], bare.input_ids[number]
                paired = [ids[index] for index in text.indices[number]]
                assert paired == [bare_ids[index] for index in bare.indices[number]]
                padding = text.left_out[number].get(Reason.PADDING, [])
                assert len(padding) == len(ids) - len(bare_ids)

    def test_a_tokenizer_without_padding_token_is_named(self):
        tokens = cutting(" ")
        with pytest.raises(ValueError, match=r"unnamed .*has no padding token"):
            align_batch(["a", "a b"], [tokens, BYTES["byte level"]], padding=True)

    def test_truncation_and_padding_of_earlier_calls_do_not_matter(self):
        sources = [byte_level_tokenizer(), metaspace_tokenizer()]
        expected = align_tokens(SENTENCES[0], sources)
        for source in sources:
            source(["a", "b c d"], padding="max_length", truncation=True, max_length=3)
        assert align_tokens(SENTENCES[0], sources).indices == expected.indices


class BytePairs(CanineTokenizer):
    """A slow tokenizer over bytes objects, as tiktoken vocabularies come with remote code."""

    def _tokenize(self, text):
        data = text.encode()
        return [data[start : start + 2] for start in range(0, len(data), 2)]

    def _convert_token_to_id(self, token):
        return (
            int.from_bytes(token, "big") + 256 * 256 * len(token) if isinstance(token, bytes) else 0
        )

    def _convert_id_to_token(self, index):
        size = index >> 16
        return (index & 0xFFFF).to_bytes(size, "big")

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return token_ids_0


class LowerCase(ByT5Tokenizer):
    """A slow tokenizer that rewrites text."""

    def _tokenize(self, text):
        return super()._tokenize(text.lower())


class TestSlowTokenizers:
    def test_byt5_is_aligned_by_its_bytes(self):
        text = "An é, 한 and 😀"
        alignment = align_tokens(text, [BYTES["byt5"], BYTES["byte level"]])
        ids = BYTES["byte level"](text)["input_ids"]
        visible = [i for i, id in enumerate(ids) if BYTES["byte level"].decode([id]).strip()]
        assert alignment.indices[1] == visible  # every token ends at some byte
        assert alignment.ends[-1] == len(text)

    def test_tokens_given_as_bytes_are_spelled_by_them(self):
        tokenizer = BytePairs()
        text = "dé이x"
        assert [len(piece) for piece in tokenizer._tokenize(text)] == [2, 2, 2, 1]
        alignment = align_tokens(text, [tokenizer, ByT5Tokenizer()])
        assert alignment.indices == [[0, 1, 2, 3], [1, 3, 5, 6]]
        assert alignment.ends == [2, 3, 3, 4]

    def test_text_that_a_slow_tokenizer_rewrites_is_refused_by_name_with_the_reason(self):
        sources = [BYTES["metaspace"], LowerCase()]
        assert align_tokens("dog", sources).indices[1] == [0, 1, 2]
        reason = r"Text 1 .*LowerCase\) gives no character offsets.* has 'Dog' they have 'dog'"
        with pytest.raises(ValueError, match=reason):
            align_batch(["the dog", "a Dog"], sources)


class TestRefusals:
    def test_a_single_tokenizer(self):
        with pytest.raises(ValueError, match="at least two sources, got 1"):
            align_tokens("text", [TOKENIZERS["metaspace"]])

    def test_half_a_character(self):
        with pytest.raises(ValueError, match=r"lone surrogate '\\ud83d' at 1\)"):
            align_tokens("a\ud83d", [TOKENIZERS["metaspace"], TOKENIZERS["byte level"]])

    def test_algorithm_1_takes_two_sources(self):
        with pytest.raises(ValueError, match="two tokenizers, got 3"):
            align_reference("a", list(BYTES.values())[:3])


MESSAGES = [
    {"role": "user", "content": " Is it the dog? 이 개? "},
    {"role": "assistant", "content": "user: it is the dog."},
]


class TestConversations:
    def test_only_what_was_said_is_paired(self):
        brackets = "{% for m in messages %}<s>[{{ m.role }}] {{ m.content }} </s>{% endfor %}"
        sources = [
            byte_level_tokenizer(chat_template=CHATML),
            metaspace_tokenizer(chat_template=brackets),
        ]
        alignment = align_tokens(MESSAGES, sources)
        plain = plain_text(MESSAGES)
        alone = align_tokens(plain, sources)
        assert alignment.ends == alone.ends
        for number, source in enumerate(sources):
            rendered = source.apply_chat_template(MESSAGES, tokenize=True)["input_ids"]
            assert alignment.input_ids[number] == rendered
            string = source.apply_chat_template(MESSAGES, tokenize=False)
            offsets = source(string, return_offsets_mapping=True)["offset_mapping"]
            stops = [offsets[index][1] for index in alignment.indices[number]]
            read = [string[:stop].rstrip()[-1] for stop in stops]
            assert read == [plain[end - 1] for end in alignment.ends]
            assert Reason.TEMPLATE in alignment.left_out[number]

    def test_texts_and_conversations_may_be_mixed(self):
        source = byte_level_tokenizer(chat_template=CHATML, bos=True)
        other = metaspace_tokenizer(chat_template=CHATML, bos=True)
        mixed = ["the dog", MESSAGES, "한 dog"]
        together = align_batch(mixed, [source, other], non_content=NonContent(first=True))
        for text, alignment in zip(mixed, together, strict=True):
            alone = align_tokens(text, [source, other], non_content=NonContent(first=True))
            assert (alignment.indices, alignment.ends) == (alone.indices, alone.ends)

    def test_a_missing_chat_template_is_said(self):
        with pytest.raises(ValueError, match="has no chat template"):
            align_tokens(MESSAGES, [BYTES["byte level"], BYTES["metaspace"]])


class TestAlgorithm1:
    def test_the_papers_example(self):
        tokenizer = TOKENIZERS["byte level"]
        year, parts = tokenizer(" 1989")["input_ids"], tokenizer(" 1 9 8 9")["input_ids"]
        digits = [id for id in parts if tokenizer.decode([id]).strip()]
        assert len(year) < len(digits) == 4
        pairs, finished = algorithm1(year, digits, tokenizer, tokenizer)
        assert finished
        assert pairs[-1] == (len(year) - 1, 3)

    def test_it_makes_wrong_pairs_and_gives_up_behind_split_characters(self):
        sources = [BYTES["byte level"], BYTES["small byte level"]]
        text = "这个句子 이 dog"
        reference = align_reference(text, sources)
        assert not reference.finished
        alignment = align_tokens(text, sources)
        assert set(zip(*reference.indices, strict=True)) - set(pairs_of(alignment))
        assert alignment.ends[-1] == len(text)
        exact = align_reference(text, sources, byte_exact=True)
        assert exact.finished
        assert exact.indices == alignment.indices

    def test_known_ids_are_taken(self):
        sources = [BYTES["byte level"], BYTES["metaspace"]]
        ids = [source("the dog")["input_ids"] for source in sources]
        again = align_reference("", sources, ids=ids)
        assert again == align_reference("the dog", sources)


def test_reasons_have_one_byte_each():
    alignment = align_tokens("the dog", [BYTES["byte level"], BYTES["metaspace"]])
    assert [reasons.dtype for reasons in alignment.reasons] == [np.uint8, np.uint8]
