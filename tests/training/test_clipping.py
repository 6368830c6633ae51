import pytest
import torch

from sparsify_crosscoder.training.clipping import clip_gradients


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_gradients_are_clipped_as_torch_does(size):
    generator = torch.Generator().manual_seed(0)
    ours, torchs = ([torch.zeros(n, 3, requires_grad=True) for n in (4, 1, 9)] for _ in "ab")
    for a, b in zip(ours, torchs, strict=True):
        a.grad = size * torch.randn(a.shape, generator=generator)
        b.grad = a.grad.clone()
    frozen = torch.zeros(2, requires_grad=True)
    clip_gradients([*ours, frozen], 1.0)
    torch.nn.utils.clip_grad_norm_([*torchs, frozen], 1.0)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, torchs, strict=True))


def test_without_gradients_there_is_nothing_to_clip():
    clip_gradients([torch.zeros(2, requires_grad=True)], 1.0)
