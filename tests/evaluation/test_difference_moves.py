"""How far pairs move along a difference, also where its latents are silent."""

from dataclasses import replace

import pytest
import torch

from sparsify_crosscoder.evaluation.difference_moves import moves_along
from tests.evaluation.test_differences import TOKEN, World, listed


@pytest.mark.parametrize("owner", [0, 1])
def test_one_is_how_far_it_moves_where_it_is_present_and_faint_ones_are_told(owner):
    world = World()
    tuned = world.changed("token")
    faint = ~world.on[:, TOKEN] & (torch.arange(len(tuned)) % 50 == 0)
    tuned[faint] += 0.3 * world.change
    sides = [tuned, world.base] if owner == 0 else [world.base, tuned]
    found = listed(world.crosscoder(tuned), sides)
    one = next(d for d in found.entries if d.latent == TOKEN)
    one = replace(one, source=owner, direction=world.change)
    along = moves_along(found, one)
    kept = found.found.pairs.numbers
    present, a_little = world.on[kept, TOKEN], faint[kept]
    nowhere = ~present & ~a_little
    rest = float(along[nowhere].mean())
    size = float(along[present].mean()) - rest
    assert size == pytest.approx(1, abs=0.1)
    assert float(along[a_little].mean()) - rest == pytest.approx(0.3, abs=0.05)
    assert float(along[nowhere].std()) < 0.1
    assert float(along.mean()) == pytest.approx(0, abs=1e-5)
    latents, _, rows = found.found.entries(torch.tensor([TOKEN]))
    assert not a_little[rows].any() and len(latents)
