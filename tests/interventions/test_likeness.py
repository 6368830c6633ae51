"""Comparing what two models do, on values worked out by hand and on models that are the same."""

import pytest
import torch

from sparsify_crosscoder.interventions.likeness import (
    Changes,
    common_words,
    likeness,
    pushes,
    word_changes,
)
from sparsify_crosscoder.interventions.steering import Steering
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer

PROMPTS = ["The quick brown", "In 1989 the wall"]


def changes(*rows: list[float]) -> Changes:
    return Changes(torch.tensor(rows), torch.full((len(rows), len(rows[0])), 0.1))


def test_the_same_change_at_another_size():
    found = likeness(changes([1.0, 2.0, 3.0]), changes([2.0, 4.0, 6.0]))
    assert (found.correlation, found.size) == (pytest.approx(1), pytest.approx(2))


def test_what_all_words_have_in_common_does_not_count():
    found = likeness(changes([1.0, 2.0, 3.0]), changes([11.0, 12.0, 13.0]))
    assert (found.correlation, found.size) == (pytest.approx(1), pytest.approx(1))


def test_prompts_count_alike():
    found = likeness(changes([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), changes([1.0, 2, 3], [3.0, 2, 1]))
    assert found.correlation == pytest.approx(0)


def test_unlikely_words_are_not_looked_at():
    generator = torch.Generator().manual_seed(0)
    probability = torch.cat([torch.full((1, 2_000), 1e-3), torch.full((1, 5_000), 1e-9)], 1)
    change = torch.randn(1, 7_000, generator=generator)
    other = change.clone()
    other[:, 2_000:] = torch.randn(1, 5_000, generator=generator)
    found = likeness(Changes(change, probability), Changes(other, probability))
    assert found.correlation == pytest.approx(1)


def test_no_change_is_like_nothing():
    found = likeness(changes([1.0, 2.0, 3.0]), changes([0.0, 0.0, 0.0]))
    assert (found.correlation, found.size) == (0, 0)


def test_common_words_are_the_same_words_in_both_vocabularies():
    first, second = byte_level_tokenizer(), metaspace_tokenizer()
    a, b = common_words(first, second)
    assert len(a) == len(b) > 5
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        assert first.decode([i]).strip() == second.decode([j]).strip() != ""


def test_a_model_and_its_copy_change_alike_and_another_does_not():
    tokenizer = byte_level_tokenizer()
    words, _ = common_words(tokenizer, tokenizer)
    model, copy = (tiny_model("llama", causal_lm=True, vocab_size=400) for _ in "ab")
    other = tiny_model("llama", causal_lm=True, vocab_size=400, seed=1)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 3

    def push(model, vector):
        return word_changes(model, tokenizer, PROMPTS, [Steering(vector, "layers.1")], [1.0], words)

    same = likeness(push(model, vector), push(copy, vector))
    assert (same.correlation, same.size) == (pytest.approx(1), pytest.approx(1))
    assert abs(likeness(push(model, vector), push(other, vector)).correlation) < 0.7
    with torch.no_grad():  # the change itself, by a hook written here
        ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
        plain = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        layer = model.model.layers[1]
        handle = layer.register_forward_hook(lambda module, args, output: output + vector)
        pushed = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        handle.remove()
    found = push(model, vector)
    torch.testing.assert_close(found.change[0], (pushed - plain)[words], atol=1e-4, rtol=1e-4)


def test_directions_in_one_batch_do_what_each_does_alone():
    tokenizer = byte_level_tokenizer()
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    generator = torch.Generator().manual_seed(4)
    steering = [
        Steering(torch.randn(32, generator=generator), "layers.1", scale) for scale in (1.0, 3.0, 2)
    ]
    tokens, strengths = torch.arange(20), [0.5, -2.0]
    found = pushes(model, tokenizer, PROMPTS, steering, strengths, tokens)
    assert found.kl.shape == (3, 2, 2)
    assert (found.kl > 0).all()
    for f, one in enumerate(steering):
        for k, strength in enumerate(strengths):
            alone = word_changes(model, tokenizer, PROMPTS, [one], [strength], tokens)
            torch.testing.assert_close(
                found.changes[f][k].change, alone.change, atol=1e-4, rtol=1e-4
            )
            torch.testing.assert_close(found.changes[f][k].probability, alone.probability)
