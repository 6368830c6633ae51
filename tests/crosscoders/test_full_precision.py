"""What is said to be exact is multiplied in float32, though the process has chosen TF32."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsify_crosscoder.crosscoders import revival
from sparsify_crosscoder.crosscoders.float32 import full_precision
from sparsify_crosscoder.registry import architecture_names
from tests.support.crosscoders import make


class Precisions(TorchDispatchMode):
    """Notes in which precision float32 matrices may be multiplied whenever some are."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm"):
            self.seen.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@contextmanager
def process_in(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def products_of_a_step(arch, **options):
    """Precisions of a step's products, with dead latents among the others."""
    crosscoder = make(arch, options).float()
    x = torch.randn(30, crosscoder.d_in)
    with process_in("high"), Precisions() as products:
        out = crosscoder(x, dead_mask=torch.rand(crosscoder.num_latents) < 0.4)
        (out.loss + out.auxk_loss).backward()
    return products.seen


@pytest.mark.parametrize("form", ["activation", "residual"])
@pytest.mark.parametrize("densely", [True, False])
@pytest.mark.parametrize("arch", architecture_names())
def test_no_product_of_a_step_is_in_tf32(arch, densely, form, monkeypatch):
    monkeypatch.setattr(revival, "_DENSE_FROM", {"cpu": 0.0 if densely else float("inf")})
    seen = products_of_a_step(arch, screening="exact", auxk_form=form)
    assert seen and set(seen) == {"highest"}


def test_auxk_alone_is_in_tf32_where_that_is_asked(monkeypatch):
    monkeypatch.setattr(revival, "_DENSE_FROM", {"cpu": 0.0})
    blocks = 3
    seen = products_of_a_step("dfc", screening="exact", auxk_products="tf32")
    # Of every block: activations and decoding, and the gradients of these and of both matrices.
    assert seen.count("high") == 5 * blocks
    assert seen.count("highest") > 0


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("tf32", [True, False])
def test_the_process_has_its_precision_again_after_a_failure(precision, tf32):
    cpu = torch.device("cpu")
    with process_in(precision), torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(KeyError), full_precision(cpu, tf32=tf32):
            assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
            assert not torch.is_autocast_enabled("cpu")
            raise KeyError
        assert torch.is_autocast_enabled("cpu")
