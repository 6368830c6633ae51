"""Steps with clipped gradients, where the clip is a pass of its own and where Adam divides."""

import copy

import pytest
import torch
from sparsify.muon import Muon

from sparsify_crosscoder.training.optimizers import take_step
from tests.support.crosscoders import make

FUSED = {"fused": True, "lr": 1e-2}


def clipped_then_stepped(crosscoders, optimizers, grad_clip):
    """What a step is defined as."""
    for crosscoder in crosscoders:
        torch.nn.utils.clip_grad_norm_(crosscoder.parameters(), grad_clip)
    for optimizer in optimizers:
        optimizer.step()


def muon_and_adam(params):
    matrices = [p for p in params if p.ndim >= 2]
    return [Muon(matrices, lr=1e-2), torch.optim.Adam([p for p in params if p.ndim < 2], lr=1e-2)]


OPTIMIZERS = {
    "fused": lambda params: [torch.optim.Adam(params, **FUSED)],
    "not fused": lambda params: [torch.optim.Adam(params, lr=1e-2)],
    "muon": muon_and_adam,
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [0.01, 1, 100], ids="gradient {}".format)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_is_clip_then_step(kind, size, count):
    ours = [make("dfc", {}).float() for _ in range(count)]
    theirs = copy.deepcopy(ours)
    both = [OPTIMIZERS[kind]([p for c in side for p in c.parameters()]) for side in (ours, theirs)]
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                p.grad = size * torch.randn_like(p) / sum(r.numel() for r in a.parameters()) ** 0.5
                q.grad = p.grad.clone()
        take_step(both[0], ours, 1.0)
        clipped_then_stepped(theirs, both[1], 1.0)
        assert all(p.grad is None for c in ours for p in c.parameters())
    for a, b in zip(ours, theirs, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    state = [optimizer[0].state_dict()["state"][0] for optimizer in both]
    for name, value in state[1].items():
        torch.testing.assert_close(state[0][name], value, rtol=1e-4, atol=1e-9)


def test_without_a_clip_gradients_are_as_long_as_they_are():
    crosscoder = make("dfc", {}).float()
    optimizer = torch.optim.SGD(crosscoder.parameters(), lr=1.0)
    before = crosscoder.b_dec.detach().clone()
    crosscoder.b_dec.grad = torch.full_like(before, 100.0)
    take_step([optimizer], [crosscoder], 0.0)
    torch.testing.assert_close(before - crosscoder.b_dec, torch.full_like(before, 100.0))
