"""Which of two models has a difference that latents of both sides read."""

import pytest
import torch

from sparsify_crosscoder.evaluation.difference_copies import Candidate
from sparsify_crosscoder.evaluation.difference_owners import led_by_owners
from sparsify_crosscoder.evaluation.linear_changes import fit_residuals
from sparsify_crosscoder.evaluation.residuals import predictions
from tests.evaluation.test_differences import TOKEN, World, listed


def candidate(source: int, score: float, direction: torch.Tensor) -> Candidate:
    """A latent that is present where the token is."""
    of = ("exclusive", source, TOKEN, "kept", score, score, 0.0, 5.0, 0.1, 0.1)
    return Candidate(*of, direction, 0, torch.nn.functional.normalize(direction, dim=0))


@pytest.mark.parametrize("owner", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_the_model_that_moves_leads_whichever_latent_has_the_higher_score(owner, first):
    world = World()
    tuned = world.changed("token") + 3 * world.change  # a shift of all pairs moves nobody
    activations = [tuned, world.base] if owner == 0 else [world.base, tuned]
    found = listed(world.crosscoder(tuned), activations).found
    fitted = fit_residuals(found, predictions(found.crosscoder, found.moments, 1e-3))
    sides = [candidate(s, 0.5, world.change * (1 if s == owner else -1)) for s in (0, 1)]
    other = candidate(1, 0.6, world.change)
    alone = (candidate(1 - owner, 0.4, world.change), [])
    groups = [(other, []), (sides[first], [sides[1 - first]]), alone]
    led = led_by_owners(found, fitted, groups)
    assert [lead.source for lead, _ in led] == [1, owner, 1 - owner]
    assert led[1][1] == [sides[1 - owner]] and led[2] == alone
