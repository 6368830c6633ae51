"""What two vocabularies say in common, against what a tokenizer itself makes of merged tokens."""

import pytest
import torch
from tokenizers import normalizers

from sparsify_crosscoder.harvest.common_tokens import common_tokens
from sparsify_crosscoder.harvest.divergence import divergences
from sparsify_crosscoder.harvest.heads import Head
from sparsify_crosscoder.harvest.source import Source
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer

SMALL, MERGED = byte_level_tokenizer(300), byte_level_tokenizer(420)


def source_of(tokenizer, padding=0):
    size = len(tokenizer) + padding
    model = tiny_model("llama", causal_lm=True, vocab_size=size, layers=1)
    return Source(
        "llama", "layers.0", model.base_model, tokenizer, 32, True, None, Head(model, "x")
    )


def first_of(token: str) -> int:
    """The first token of the smaller vocabulary in one of the larger, by the tokenizer's merges."""
    if (known := SMALL.get_vocab().get(token)) is not None:
        return known
    return SMALL.backend_tokenizer.model.tokenize(token)[0].id


def test_of_merged_tokens_it_is_the_exact_divergence():
    assert {*SMALL.get_vocab()} < {*MERGED.get_vocab()}
    generator = torch.Generator().manual_seed(0)
    small, merged = (
        torch.randn(5, len(one), generator=generator).mul(3).double().log_softmax(-1)
        for one in (SMALL, MERGED)
    )
    exact = torch.zeros(5, len(SMALL), dtype=torch.float64)
    for token, id in MERGED.get_vocab().items():
        exact[:, first_of(token)] += merged[:, id].exp()
    special = SMALL.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    p = small.exp()
    for one in (exact, p):  # special tokens are told from others, but not from each other
        one[:, special[0]] = one[:, special].sum(1)
        one[:, special[1:]] = 0
    expected = [torch.xlogy(x, x / y).nansum(1) for x, y in ((exact, p), (p, exact))]

    common = common_tokens(source_of(SMALL), source_of(MERGED))
    found = divergences(common.log_probabilities(1, merged), common.log_probabilities(0, small))
    for mine, right in zip(found, expected, strict=True):
        assert torch.allclose(mine, right, rtol=1e-9)
    swapped = common_tokens(source_of(MERGED), source_of(SMALL))
    back = divergences(swapped.log_probabilities(1, small), swapped.log_probabilities(0, merged))
    assert torch.allclose(back[1], found[0]) and torch.allclose(back[0], found[1])
    assert swapped.said == common.said


def test_one_vocabulary_is_taken_as_it_is():
    common = common_tokens(source_of(SMALL, padding=4), source_of(SMALL, padding=4))
    logs = torch.randn(3, len(SMALL) + 4).log_softmax(-1)
    assert common.log_probabilities(1, logs) is logs
    assert len(common) == len(SMALL) + 4


def test_other_tokenizers_have_words_in_common_and_nothing_is_lost():
    other = metaspace_tokenizer(500)
    common = common_tokens(source_of(MERGED), source_of(other, padding=7))
    assert {" the", "a", "."} <= {*common.said}
    for source, size in enumerate((len(MERGED), len(other) + 7)):
        logs = torch.randn(4, size).log_softmax(-1)
        found = common.log_probabilities(source, logs).exp()
        assert found.shape == (4, len(common))
        assert torch.allclose(found.sum(1), torch.ones(4), atol=1e-5)
    assert common.beginnings is not None
    for source, tokenizer in enumerate((MERGED, other)):
        whole = tokenizer.convert_tokens_to_ids("Ġthe" if source == 0 else "▁the")
        assert common.said[int(common.beginnings[source][whole])] == " the"


def test_a_vocabulary_without_spelling_is_refused():
    rewriting = byte_level_tokenizer(normalizer=normalizers.Replace("a", "o"))
    with pytest.raises(ValueError, match=r"not known what the tokens of .* spell"):
        common_tokens(source_of(SMALL), source_of(rewriting))
