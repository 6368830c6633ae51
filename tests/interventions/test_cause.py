"""Verified causes, where one is planted in a model's weights, and none where there is none."""

from copy import deepcopy

import pytest
import torch

from sparsify_crosscoder.interventions.answer_likelihood import Answered
from sparsify_crosscoder.interventions.cause import Behaviour, Cause, CauseSettings, cause
from sparsify_crosscoder.interventions.random_directions import random_directions
from sparsify_crosscoder.interventions.steering import Steering
from tests.support.models import tiny_model
from tests.support.tokenizers import SENTENCES, byte_level_tokenizer

WIDTH = 32
PLACE = "layers.1"
# After "!" comes "?".
BEGINNINGS = [sentence[:20].strip() for sentence in SENTENCES]
BEHAVIOUR = Behaviour(
    [Answered(f"{beginning}!", "?") for beginning in BEGINNINGS],
    [Answered(sentence[:20], sentence[20:]) for sentence in SENTENCES],
)

QUICK = CauseSettings(strengths=(1.0,), spans=("hookpoint",))


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(bos=True)


@pytest.fixture(scope="module")
def base(tokenizer):
    return tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))


@pytest.fixture(scope="module")
def planted(base, tokenizer):
    """A direction that makes "?" likelier."""
    return 4 * base.lm_head.weight[tokenizer("?")["input_ids"][-1]]


@pytest.fixture(scope="module")
def organism(base, planted, tokenizer):
    """The base, with the direction written where "!" is read."""
    model = deepcopy(base)
    model.get_input_embeddings().weight[tokenizer("!")["input_ids"][-1]] += planted
    return model


def random_vectors(planted, count=2):
    return random_directions(planted, count, seed=1)


def test_adding_the_planted_direction_is_verified_in_the_base(base, planted, tokenizer):
    settings = CauseSettings(strengths=(0.5, 1.0))
    found = cause(base, tokenizer, Steering(planted, PLACE), BEHAVIOUR, settings)
    assert found.kind == "adds"
    assert found.verified
    assert found.p == 1 / 21
    assert found.shown > 1
    assert found.interval[0] < found.effect < found.interval[1]
    assert found.sentence().startswith("verified: adding it raises")


def test_ablating_the_planted_direction_is_verified_in_the_organism(
    base, organism, planted, tokenizer
):
    steering = Steering(planted, PLACE, mode="ablate")
    found = cause(organism, tokenizer, steering, BEHAVIOUR, reference=base)
    assert found.kind == "ablates"
    assert found.verified
    assert found.shown < -1
    assert abs(found.elsewhere) < 0.01  # where both models are alike, there is nothing to remove


def test_without_the_other_model_its_mean_elsewhere_takes_the_place(organism, planted, tokenizer):
    steering = Steering(planted, PLACE, mode="ablate")
    found = cause(organism, tokenizer, steering, BEHAVIOUR, QUICK)
    assert found.verified
    assert found.shown < -1


def test_random_directions_are_not_verified(base, organism, planted, tokenizer):
    for vector in random_vectors(planted):
        ablating = Steering(vector, PLACE, mode="ablate")
        added = cause(base, tokenizer, Steering(vector, PLACE), BEHAVIOUR, QUICK)
        ablated = cause(organism, tokenizer, ablating, BEHAVIOUR, QUICK, reference=base)
        assert not added.verified
        assert not ablated.verified
        assert added.sentence().startswith("not verified: adding it")


def test_between_equal_models_nothing_is_verified(base, planted, tokenizer):
    for vector in [planted, *random_vectors(planted)]:
        steering = Steering(vector, PLACE, mode="ablate")
        found = cause(base, tokenizer, steering, BEHAVIOUR, QUICK, reference=deepcopy(base))
        assert found.effect == pytest.approx(0, abs=1e-4)
        assert not found.verified


def test_damage_elsewhere_is_no_merit(base, planted, tokenizer):
    found = cause(base, tokenizer, Steering(5 * planted, PLACE), BEHAVIOUR, QUICK)
    assert found.elsewhere < -0.3
    assert found.effect == found.shown


def test_the_strength_and_the_span_are_chosen_on_the_other_half(base, planted, tokenizer):
    settings = CauseSettings(strengths=(-1.0, 0.01, 1.0), spans=("hookpoint",), random=2)
    found = cause(base, tokenizer, Steering(planted, PLACE), BEHAVIOUR, settings)
    assert (found.strength, found.span) == (1.0, "hookpoint")
    # The tested half cannot change the choice, only the figures.
    even = Behaviour(*(list(part) for part in BEHAVIOUR))
    even.shown[1::2] = [Answered(one.prompt, " dog") for one in even.shown[1::2]]
    other = cause(base, tokenizer, Steering(planted, PLACE), even, settings)
    assert (other.strength, other.span) == (1.0, "hookpoint")
    assert other.effect < found.effect


def test_random_directions_lie_where_activations_do():
    generator = torch.Generator().manual_seed(0)
    like = torch.randn(500, 8, generator=generator) * torch.tensor([3.0, *[1.0] * 6, 0.01])
    vector = torch.tensor([0.0, 2.0, *[0.0] * 6])
    drawn = random_directions(vector, 400, like=like)
    torch.testing.assert_close(drawn.norm(dim=1), torch.full((400,), 2.0))
    torch.testing.assert_close(drawn @ vector, torch.zeros(400), atol=1e-5, rtol=0)
    assert drawn[:, 0].square().mean() > 3 * drawn[:, 2].square().mean()
    assert drawn[:, 7].square().mean() < 0.01 * drawn[:, 2].square().mean()
    assert random_directions(vector, 400)[:, 7].square().mean() > 0.3
    with pytest.raises(ValueError, match="along the direction alone"):
        random_directions(vector, 2, like=torch.arange(5.0)[:, None] * vector)


def test_verified_needs_both_the_interval_and_the_random_directions():
    def of(effect, low, random):
        return Cause("adds", effect, (low, 9.0), effect, 0.0, random, 1.0, "hookpoint")

    enough = (0.2, 0.9) * 10
    assert of(1.0, 0.5, enough).verified
    assert not of(1.0, -0.1, enough).verified
    assert not of(1.0, 0.5, (*enough[1:], 1.1)).verified
    assert not of(0.001, 0.0005, (0.0,) * 20).verified
    assert not of(1.0, 0.5, enough[:18]).verified  # so few random directions tell nothing
    assert of(1.0, 0.5, enough).sentence().endswith("of equal length do less (p = 0.048).")
    assert of(1.0, 0.5, (0.2, 1.1)).p == pytest.approx(2 / 3)


def test_too_few_answers_are_refused(base, planted, tokenizer):
    with pytest.raises(ValueError, match="not by clamping"):
        cause(base, tokenizer, Steering(planted, PLACE, mode="clamp"), BEHAVIOUR)
    few = Behaviour(BEHAVIOUR.shown[:3], BEHAVIOUR.elsewhere)
    with pytest.raises(ValueError, match="at least 4 answers"):
        cause(base, tokenizer, Steering(planted, PLACE), few)
