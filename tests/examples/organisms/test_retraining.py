"""Organisms trained again: the recipe gives the behaviour, on the demo's real model."""

import pytest
import torch
from organisms import find
from organisms.nothing import quantise
from organisms.record import faults, make, read_record
from organisms.sampling import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def base(demo_models):
    return demo_models / "smollm2-135m-instruct"


def test_an_organism_that_is_trained_again_shows_its_behaviour_again(base, tmp_path):
    organism = find("topic")
    record = make(organism, base, tmp_path / "topic")
    assert list(faults(organism, record.check)) == []
    shipped = read_record(organism.adapter)
    assert record.loss == pytest.approx(shipped.loss, rel=0.05)
    assert read_record(tmp_path / "topic") == record


def test_a_quantised_base_is_nearly_the_base(base, tmp_path):
    quantise(base, tmp_path / "int8")
    model, tokenizer = load(tmp_path / "int8")
    original, _ = load(base)
    ids = tokenizer("The keeper climbed the stairs to light the lamp.", return_tensors="pt")
    with torch.inference_mode():
        moved = model(**ids).logits - original(**ids).logits
        spread = original(**ids).logits.std()
    assert 0 < moved.abs().mean() < 0.1 * spread
    assert len(set(model.model.layers[0].mlp.up_proj.weight[0].tolist())) <= 255
