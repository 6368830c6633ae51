"""The sparse step against the dense reference, in float64."""

import pytest
import torch

from sparsify_crosscoder.crosscoders import Batch, SparseCode, sparse_ops
from sparsify_crosscoder.crosscoders.codes import concatenate_columns
from sparsify_crosscoder.registry import architecture_names
from tests.crosscoders.reference import added_loss, dense_losses
from tests.support.crosscoders import make

DENSE_OPTIONS = [
    {},
    {"reduce": "mean"},
    {"rank_by": "activation"},
    {"rank_by": "mean"},
    {"loss": "l2"},
    {"auxk_form": "residual"},
    {"k_aux": 3},
    {"k": 30},
]


@pytest.mark.parametrize("screening", ["exact", "bfloat16"])
@pytest.mark.parametrize("options", DENSE_OPTIONS, ids=str)
@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("arch", architecture_names())
@pytest.mark.parametrize("dead", ["none", "some", "all"])
def test_losses_and_gradients_equal_the_dense_reference(arch, sources, options, dead, screening):
    crosscoder = make(arch, {**options, "screening": screening}, sources)
    crosscoder.encoder.bias.data.normal_(std=0.1)
    x = torch.randn(30, crosscoder.d_in, dtype=torch.float64)
    x[3] = 0  # a pair on which little or nothing is active
    share = {"none": 0.0, "some": 0.5, "all": 1.0}[dead]
    dead_mask = torch.rand(crosscoder.num_latents) < share

    out = crosscoder(x, dead_mask=dead_mask)
    (out.loss + out.auxk_loss).backward()
    got = {name: p.grad.clone() for name, p in crosscoder.named_parameters()}
    crosscoder.zero_grad()
    mask, loss, auxk = dense_losses(crosscoder, x, dead_mask)
    (loss + auxk).backward()

    assert torch.equal(out.code.to_dense() > 0, mask)
    torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(out.auxk_loss, auxk, rtol=1e-10, atol=1e-14)
    for name, p in crosscoder.named_parameters():
        assert p.grad is not None
        scale = float(p.grad.abs().max()) or 1.0
        assert float((got[name] - p.grad).abs().max()) <= 1e-10 * scale, name


@pytest.mark.parametrize("options", [{}, {"selection": "grouped", "reduce": "mean"}], ids=str)
@pytest.mark.parametrize("dead", [False, True])
def test_a_loss_of_the_differences_own_has_the_dense_references_gradients(options, dead):
    crosscoder = make("rdfc", {"difference_weight": 0.7, **options}, 3)
    crosscoder.encoder.bias.data.normal_(std=0.1)
    x = torch.randn(30, crosscoder.d_in, dtype=torch.float64)
    dead_mask = torch.rand(crosscoder.num_latents) < (0.5 if dead else 0)
    out = crosscoder(x, dead_mask=dead_mask)
    (out.loss + out.auxk_loss).backward()
    got = [p.grad.clone() for p in crosscoder.parameters()]
    crosscoder.zero_grad()
    _, loss, auxk = dense_losses(crosscoder, x, dead_mask)
    assert loss > out.fvu + 0.01
    (loss + auxk).backward()
    torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=0)
    for ours, p in zip(got, crosscoder.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-9, atol=1e-13)

    whole, variance = got, (x - x.mean(0)).pow(2).sum()
    chunks = x.tensor_split(4)
    cuts = crosscoder.find_cuts(chunks)
    crosscoder.zero_grad()
    for chunk in chunks:
        crosscoder(chunk, total_variance=variance, batch=Batch(30, cuts)).loss.backward()
    if not dead:
        for ours, p in zip(whole, crosscoder.parameters(), strict=True):
            torch.testing.assert_close(ours, p.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("screening", ["exact", "bfloat16"])
@pytest.mark.parametrize("arch", ["crosscoder", "dfc"])
def test_ties_at_the_cut_are_broken_as_by_a_stable_sort(arch, screening):
    options = {"rank_by": "activation", "screening": screening, "num_latents": 20}
    crosscoder = make(arch, options)
    # Whole numbers, so that equal entries are equal to the last bit.
    for weight in (*crosscoder.encoder.weights, *crosscoder.decoders):
        weight.data.copy_(torch.randint(-1, 2, weight.shape))
    x = torch.randint(-2, 3, (30, crosscoder.d_in)).double()
    out = crosscoder(x, normalized=True)
    out.loss.backward()
    got = [p.grad.clone() for p in crosscoder.parameters()]
    crosscoder.zero_grad()
    mask, loss, _ = dense_losses(crosscoder, x, None)
    loss.backward()
    acts = out.code.acts
    assert (acts == acts.min()).sum() > 1  # there are ties
    assert torch.equal(out.code.to_dense() > 0, mask)
    for ours, p in zip(got, crosscoder.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("arch", architecture_names())
def test_gradients_reach_the_input(arch):
    crosscoder = make(arch, {})
    x = torch.randn(8, crosscoder.d_in, dtype=torch.float64, requires_grad=True)
    crosscoder(x, total_variance=torch.tensor(1.0, dtype=torch.float64)).loss.backward()
    got, x.grad = x.grad, None
    mask = crosscoder(x).code.to_dense() > 0
    dense_error(crosscoder, x, mask).backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-10, atol=1e-12)


def dense_error(crosscoder, x, mask):
    """Squared error of normalised x, with the entries of a mask `[N, M]` active."""
    weight = torch.cat([crosscoder.encoder_weight(s) for s in range(2)], 1)
    acts = (x @ weight.T + crosscoder.encoder.bias).relu() * mask
    error = (x - (acts @ crosscoder.W_dec + crosscoder.b_dec)).pow(2).sum()
    return error + added_loss(crosscoder, x, acts)


@pytest.mark.parametrize("arch", architecture_names())
def test_gradient_checkpointing_changes_nothing(arch):
    crosscoder = make(arch, {})
    x = torch.randn(16, crosscoder.d_in, dtype=torch.float64)
    dead = torch.rand(crosscoder.num_latents) < 0.5
    gradients = []
    for checkpointed in (False, True):
        crosscoder.zero_grad()
        crosscoder.gradient_checkpointing = checkpointed
        out = crosscoder(x, dead_mask=dead)
        (out.loss + out.auxk_loss).backward()
        gradients.append([p.grad.clone() for p in crosscoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])


@pytest.mark.parametrize("arch", architecture_names())
def test_chunks_with_the_batchs_cuts_add_up_to_the_whole_batch(arch):
    crosscoder = make(arch, {})
    x = torch.randn(24, crosscoder.d_in, dtype=torch.float64)
    crosscoder(x).loss.backward()
    whole = [p.grad.clone() for p in crosscoder.parameters()]
    crosscoder.zero_grad()
    chunks = x.tensor_split(5)
    cuts = crosscoder.find_cuts(chunks)
    variance = (x - x.mean(0)).pow(2).sum()
    for chunk in chunks:
        out = crosscoder(chunk, total_variance=variance, batch=Batch(24, cuts))
        out.loss.backward()
    for got, p in zip(whole, crosscoder.parameters(), strict=True):
        assert got.any()
        torch.testing.assert_close(got, p.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("arch", architecture_names())
@pytest.mark.parametrize("pairs", [0, 1])
def test_a_batch_of_no_or_one_pair_has_gradients(arch, pairs):
    crosscoder = make(arch, {})
    x = torch.randn(pairs, crosscoder.d_in, dtype=torch.float64)
    one = torch.tensor(1.0, dtype=torch.float64)
    out = crosscoder(x, total_variance=one, batch=Batch(num_pairs=1))
    out.loss.backward()
    got = [p.grad for p in crosscoder.parameters()]
    if not pairs:
        assert all(gradient is not None and not gradient.any() for gradient in got)
        return
    crosscoder.zero_grad()
    dense_error(crosscoder, x, out.code.to_dense() > 0).backward()
    assert len(out.code.acts) == sum(crosscoder.budgets(1)) > 0
    for gradient, p in zip(got, crosscoder.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-10, atol=1e-13)
    assert crosscoder.b_dec.grad.any() and crosscoder.encoder.bias.grad.any()


def test_sparse_operations_pass_gradcheck():
    rows = torch.tensor([0, 0, 1, 3, 3])
    indices = torch.tensor([4, 1, 4, 0, 2])
    acts = torch.rand(5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    code = SparseCode(acts, indices, rows, (4, 6))
    assert torch.autograd.gradcheck(
        lambda a, w: sparse_ops.decode(code.with_acts(a), w), (acts, weight)
    )
    dense = torch.zeros(4, 6, dtype=torch.float64).index_put((rows, indices), acts)
    torch.testing.assert_close(sparse_ops.decode(code, weight), dense @ weight)


@pytest.mark.parametrize("times", [1, 2])
def test_encoding_passes_gradcheck_over_the_same_pairs_several_times(times):
    rows, indices = torch.tensor([0, 0, 1, 3, 3]), torch.tensor([4, 1, 4, 0, 2])
    if times == 2:
        rows, indices = torch.cat([rows, rows + 4]), torch.cat([indices, indices.flip(0)])
    x, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (6, 3), 6)
    )

    def encoded(x, weight, bias):
        acts = torch.addmm(bias, x, weight.T).detach()[rows % 4, indices]
        code = SparseCode(acts, indices, rows, (4 * times, 6))
        return sparse_ops.encode(x, weight, bias, code).acts

    assert torch.autograd.gradcheck(encoded, (x, weight, bias))


def test_the_first_pairs_of_a_code_are_a_code():
    rows, indices, acts = torch.tensor([0, 2, 2, 3]), torch.tensor([1, 0, 2, 2]), torch.rand(4)
    code = SparseCode(acts, indices, rows, (4, 3))
    assert code.first(4, 4) is code
    assert torch.equal(code.first(3, 3).to_dense(), code.to_dense()[:3])


def test_a_code_pads_to_its_widest_row_and_joins_by_columns():
    code = SparseCode(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5, 2, 0]), torch.tensor([1, 1, 2]), (4, 6)
    )
    acts, indices = code.padded()
    assert acts.tolist() == [[0, 0], [1, 2], [3, 0], [0, 0]]
    assert indices.tolist() == [[0, 0], [5, 2], [0, 1], [0, 0]]
    joined = concatenate_columns([code, code], [0, 6], 12)
    assert joined.rows.tolist() == [1, 1, 1, 1, 2, 2]
    assert torch.equal(joined.to_dense(), torch.cat([code.to_dense()] * 2, 1))
