"""AuxK by dense products over the dead rows, and entry by entry: the same losses and gradients."""

import pytest
import torch

from sparsify_crosscoder.crosscoders import revival
from sparsify_crosscoder.registry import architecture_names
from tests.crosscoders.reference import dense_losses
from tests.support.crosscoders import make

WAYS = {"densely": 0.0, "by entry": float("inf")}
OPTIONS = [{}, {"auxk_form": "residual"}, {"k_aux": 3}, {"reduce": "mean", "k_aux": 200}]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(revival, "_DENSE_FROM", {"cpu": WAYS[request.param]})
    return request.param


def some(arch, options, sources=2):
    crosscoder = make(arch, options, sources)
    crosscoder.encoder.bias.data.normal_(std=0.1)
    x = torch.randn(30, crosscoder.d_in, dtype=torch.float64)
    return crosscoder, x, torch.rand(crosscoder.num_latents) < 0.4


def gradients(crosscoder, loss):
    crosscoder.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in crosscoder.named_parameters() if p.grad is not None}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        scale = float(grad.abs().max()) or 1.0
        assert float((ours[name] - grad).abs().max()) <= 1e-10 * scale, name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("arch", architecture_names())
def test_both_ways_are_the_dense_reference(arch, options, way):
    crosscoder, x, dead = some(arch, options, 3)
    out = crosscoder(x, dead_mask=dead)
    ours = gradients(crosscoder, out.loss + 0.5 * out.auxk_loss)
    _, loss, auxk = dense_losses(crosscoder, x, dead)
    assert auxk > 0
    torch.testing.assert_close(out.auxk_loss, auxk, rtol=1e-10, atol=0)
    assert_equal(ours, gradients(crosscoder, loss + 0.5 * auxk))


@pytest.mark.parametrize("form", ["activation", "residual"])
@pytest.mark.parametrize("arch", architecture_names())
def test_the_auxiliary_loss_has_its_gradients_without_the_other(arch, form, way):
    crosscoder, x, dead = some(arch, {"auxk_form": form})
    ours = gradients(crosscoder, crosscoder(x, dead_mask=dead).auxk_loss)
    theirs = gradients(crosscoder, dense_losses(crosscoder, x, dead)[2])
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-9, atol=1e-12)


def test_a_graph_that_is_kept_gives_its_gradients_twice(way):
    crosscoder, x, dead = some("dfc", {})
    loss = crosscoder(x, dead_mask=dead).auxk_loss
    crosscoder.zero_grad()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in crosscoder.parameters() if p.grad is not None]
    loss.backward()
    twice = [p.grad for p in crosscoder.parameters() if p.grad is not None]
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b)


@pytest.mark.parametrize("form", ["activation", "residual"])
def test_checkpointing_changes_nothing(form, way):
    crosscoder, x, dead = some("rdfc", {"auxk_form": form})
    found = []
    for checkpointed in (False, True):
        crosscoder.gradient_checkpointing = checkpointed
        out = crosscoder(x, dead_mask=dead)
        found.append(gradients(crosscoder, out.loss + out.auxk_loss))
    assert_equal(*found)


def test_gradients_reach_what_the_dead_latents_read(way):
    crosscoder, x, dead = some("dfc", {})
    x.requires_grad_(True)
    crosscoder(x, dead_mask=dead).auxk_loss.backward()
    assert x.grad is not None
    got, x.grad = x.grad, None
    dense_losses(crosscoder, x, dead)[2].backward()
    assert got.any()
    torch.testing.assert_close(got, x.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_autocast_rounds_neither_way(autocast, way):
    crosscoder, x, dead = some("crosscoder", {})
    crosscoder, x = crosscoder.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = crosscoder(x, dead_mask=dead)
        ours = gradients(crosscoder, out.auxk_loss)
    theirs = gradients(crosscoder, dense_losses(crosscoder, x, dead)[2])
    for name in ("encoder.weights.0", "encoder.bias"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-6)


def test_few_dead_latents_are_taken_densely_and_many_by_entry(monkeypatch):
    taken = []
    answers = revival.answers
    monkeypatch.setattr(
        "sparsify_crosscoder.crosscoders.crosscoder.answers",
        lambda *args: taken.append(len(args[0])) or answers(*args),
    )
    crosscoder = make("crosscoder", {"k_aux": 2})
    x = torch.randn(30, crosscoder.d_in, dtype=torch.float64)
    for dead in (10, 11):
        crosscoder(x, dead_mask=torch.arange(crosscoder.num_latents) < dead)
    assert taken == [1]
