"""Texts by how differently two models continue them."""

import numpy as np
import pytest
import torch

from sparsify_crosscoder.evaluation.text_divergence import (
    divergence_of_likelihoods,
    text_divergence,
)
from sparsify_crosscoder.harvest.heads import Head
from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.store.store import ActivationStore
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer
from tests.support.windows import random_windows

TOKENIZER = byte_level_tokenizer()


def sources(change):
    """A model, and it with what follows token 7 changed; or the model twice."""
    found = []
    for name in ("base", "tuned"):
        model = tiny_model("llama", causal_lm=True)
        if name == "tuned" and change:
            model.base_model.embed_tokens.weight[7] += 1
        head = Head(model, name)
        found.append(Source(name, "layers.1", model.base_model, TOKENIZER, 32, True, head=head))
    return found


@pytest.fixture(scope="module")
def windows():
    return random_windows(16, same_tokens=True, vocab_size=60)


@pytest.fixture(scope="module")
def store(windows, tmp_path_factory):
    path = tmp_path_factory.mktemp("divergence") / "store"
    settings = {"batch_size": 4, "shard_pairs": 30, "dtype": "float32"}
    return ActivationStore.create(path, sources(True), windows, **settings)


def test_texts_are_ranked_by_their_mean(store, windows):
    found = text_divergence(store, places=3)
    means = [text.mean for text in found]
    assert means == sorted(means, reverse=True)
    texts = np.repeat(windows["text_id"], windows["num_pairs"])
    values = store.columns(torch.arange(len(store)))["kl_1_0"].numpy()
    assert sorted(text.text_id for text in found) == sorted(set(windows["text_id"]))
    for text in found:
        own = values[texts == text.text_id]
        assert text.pairs == len(own)
        assert text.mean == pytest.approx(own.mean(), rel=1e-5)
        largest = sorted(own.tolist(), reverse=True)[:3]
        assert [place.value for place in text.largest] == largest and text.max == largest[0]
        for place in text.largest:
            shown = store.pair(place.pair)
            assert (shown.text_id, shown.characters) == (text.text_id, place.characters)
            assert values[place.pair] == np.float32(place.value)


def test_texts_that_the_change_reaches_come_first(store, windows):
    reached = {
        row["text_id"]
        for row in windows
        if any(7 in row["input_ids_0"][: place + 1] for place in row["pairs_0"])
    }
    found = text_divergence(store)
    assert 0 < len(reached) < len(found)
    assert {text.text_id for text in found[: len(reached)]} == reached
    assert all(text.max == 0 for text in found[len(reached) :])


def test_a_model_beside_itself_diverges_nowhere(windows, tmp_path):
    store = ActivationStore.create(tmp_path / "s", sources(False), windows, batch_size=4)
    assert all(text.mean == text.max == 0 for text in text_divergence(store))


def test_what_cannot_be_ranked_is_said(store):
    with pytest.raises(ValueError, match="has no column 'kl_2_0'"):
        text_divergence(store, column="kl_2_0")


def test_likelihoods_of_text_that_one_model_wrote_tell_the_divergence():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(50, generator=generator).log_softmax(0)
    second = (first + 0.3 * torch.randn(50, generator=generator)).log_softmax(0)
    written = first.exp().multinomial(200_000, replacement=True, generator=generator)
    told = divergence_of_likelihoods(first[written], second[written]).mean()
    known = (first.exp() * (first - second)).sum()
    assert told == pytest.approx(float(known), rel=0.2)
    assert not divergence_of_likelihoods(first, first).any()
    unknown = torch.tensor([float("nan"), -800.0])
    assert divergence_of_likelihoods(unknown, torch.zeros(2)).tolist() == [0.0, 799.0]
