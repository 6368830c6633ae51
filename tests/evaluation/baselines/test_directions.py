"""Directions and distances of planted differences between random activations."""

import pytest
import torch
import torch.nn.functional as F

from sparsify_crosscoder.evaluation.baselines.coder import CoderConfig
from sparsify_crosscoder.evaluation.baselines.difference import difference_of
from sparsify_crosscoder.evaluation.baselines.directions import (
    coder_latents,
    components,
    mean_directions,
)
from sparsify_crosscoder.evaluation.baselines.reading import Reading
from sparsify_crosscoder.evaluation.baselines.text_scores import text_scores
from sparsify_crosscoder.store.pair_notes import PairNotes
from tests.support.windows import random_windows

TEXTS, PAIRS, WIDTH = 40, 50, 16
PLANTED = [3, 8, 21, 30]


def reading_of(first, second):
    """Pairs with these activations, the same number of each text."""
    zero = torch.zeros(TEXTS * PAIRS, dtype=torch.long)
    text = torch.arange(TEXTS).repeat_interleave(PAIRS)
    place = torch.arange(PAIRS).repeat(TEXTS)
    notes = PairNotes(text, text, place, place + 1, zero, zero)
    every = torch.arange(len(text))
    return Reading(random_windows(1), notes, {}, every, [first, second], None, [])


def planted(seed=0, width=WIDTH):
    """Activations of A, and B's own noise with a direction in some texts."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(TEXTS * PAIRS, WIDTH, generator=generator)
    noise = 0.1 * torch.randn(TEXTS * PAIRS, width, generator=generator)
    direction = F.normalize(torch.randn(width, generator=generator), dim=0)
    where = torch.isin(torch.arange(TEXTS).repeat_interleave(PAIRS), torch.tensor(PLANTED))
    return a, noise + 1.5 * where[:, None] * direction, direction


def test_the_first_component_is_a_direction_of_some_texts_with_these_texts():
    a, extra, direction = planted()
    found = difference_of(reading_of(a, a + extra), 2.0)
    assert found.maps is None
    first = components(found)[0]
    assert float(first.vector @ direction) > 0.99
    assert {*first.texts[:4]} == {*PLANTED}
    assert first.interval is not None and first.interval[0] < first.score < first.interval[1]
    everything = torch.cat([x for _, x in found.chunks()])
    largest = torch.linalg.eigvalsh(everything.T.cov())[-1]
    assert first.score == pytest.approx(float(largest / everything.var(0).sum()), rel=1e-3)


def test_a_component_is_turned_to_the_side_that_is_further_out():
    a, extra, direction = planted()
    found = difference_of(reading_of(a, a - extra), 2.0)
    assert float(components(found)[0].vector @ direction) < -0.99


def test_a_latent_of_the_coder_is_of_the_texts_with_the_direction():
    a, extra, direction = planted()
    found = difference_of(reading_of(a, a + extra), 2.0)
    config = CoderConfig(latents=16, k=1, steps=150, pairs_per_step=128, lr=1e-2)
    first = coder_latents(found, config)[0]
    assert float(first.vector @ direction) > 0.5
    assert {*first.texts[:4]} == {*PLANTED}


def test_the_mean_over_text_and_on_first_tokens():
    a, _, direction = planted()
    at_first = (torch.arange(PAIRS).repeat(TEXTS) < 5)[:, None]
    reading = reading_of(a, a + torch.where(at_first, 1.0, 0.1) * direction)
    found = mean_directions(reading, difference_of(reading, 0.0))
    (over_text,), (first,) = found["mean"], found["first"]
    for one, size, rows in ((over_text, 0.19, slice(None)), (first, 1.0, at_first[:, 0])):
        assert float(one.vector @ direction) > 0.999
        norm = float(reading.activations[1][rows].norm(dim=1).mean())
        assert one.score == pytest.approx(size / norm, rel=1e-4)


def test_beside_a_map_the_texts_with_something_more_are_the_farthest():
    a, extra, direction = planted(width=24)
    weights = torch.randn(WIDTH, 24, generator=torch.Generator().manual_seed(5))
    reading = reading_of(a, 3 + a @ weights + extra)
    found = difference_of(reading, 0.0)
    assert found.maps is not None and "mean" not in mean_directions(reading, found)
    scores = text_scores(reading, found.relative(reading))
    assert {*scores.texts[:4].tolist()} == {*PLANTED}
    assert scores.scores[4] < 0.5 * scores.scores[3]
    assert float(components(found)[0].vector @ direction) > 0.98
    # What a half of the texts is compared with is fitted on the other half.
    reading.activations[1][found.text % 2 == 0] += 7
    assert torch.allclose(difference_of(reading, 0.0).maps[1].means[1], found.maps[1].means[1] + 7)


def test_equal_activations_have_no_direction():
    a, _, _ = planted()
    reading = reading_of(a, a.clone())
    found = difference_of(reading, 2.0)
    assert components(found) == []
    assert not found.relative(reading).values.any()
    assert [one.score for some in mean_directions(reading, found).values() for one in some] == [
        0,
        0,
    ]
