import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.sparse_coder import ForwardOutput
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sparsify_crosscoder import (
    Crosscoder,
    CrosscoderConfig,
    DedicatedFeatureCrosscoder,
    DFCConfig,
)
from sparsify_crosscoder.crosscoders import CrosscoderOutput
from sparsify_crosscoder.registry import architecture_names
from tests.support.crosscoders import make, train_a_little


def by_hand() -> Crosscoder:
    """Two sources of width 1; latents read (a, b) and write decoders worked out by hand."""
    crosscoder = Crosscoder([1, 1], CrosscoderConfig(num_latents=3, k=1))
    with torch.no_grad():
        crosscoder.encoder.weights[0].copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]]))
        crosscoder.decoders[0].copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]))
        crosscoder.encoder.bias.copy_(torch.tensor([0.0, 0.5, -1.0]))
        crosscoder.b_dec.copy_(torch.tensor([0.1, 0.2]))
    return crosscoder


def test_encoding_and_decoding_by_hand():
    crosscoder = by_hand()
    x = torch.tensor([[1.0, 2.0], [0.5, 0.5]])
    # Activations: [3, 2.5, 1] and [1, 1.5, 0]; times the decoder norms 7, 1, 2: 21, 2.5, 2 and
    # 7, 1.5, 0. Two entries for two pairs: 21 and 7.
    code = crosscoder.encode_sparse(x)
    assert code.rows.tolist() == [0, 1]
    assert code.indices.tolist() == [0, 0]
    assert code.acts.tolist() == [3.0, 1.0]
    out = crosscoder(x)
    expected = torch.tensor([[9.1, 12.2], [3.1, 4.2]])
    torch.testing.assert_close(out.sae_out, expected)
    # Variance of x around (.75, 1.25): .125 + 1.125; squared errors as below.
    fvu = (expected - x).pow(2).sum() / 1.25
    torch.testing.assert_close(out.fvu, fvu)
    assert out.cuts.tolist() == [7.0]


def test_ranking_by_activation_ignores_decoder_norms():
    crosscoder = by_hand()
    crosscoder.cfg.rank_by = "activation"
    code = crosscoder.encode_sparse(torch.tensor([[1.0, 2.0], [0.5, 0.5]]))
    assert code.acts.tolist() == [3.0, 2.5]
    assert code.indices.tolist() == [0, 1]


def test_relative_decoder_norm_by_hand():
    crosscoder = by_hand()
    torch.testing.assert_close(crosscoder.relative_decoder_norm(), torch.tensor([3 / 7, 1.0, 0.0]))
    torch.testing.assert_close(crosscoder.relative_decoder_norm(1), torch.tensor([4 / 7, 0.0, 1.0]))


def test_mean_divides_by_the_sources_a_latent_may_read():
    cfg = DFCConfig(num_latents=10, k=10, exclusive_fractions=[0.2, 0.2])
    summed = DedicatedFeatureCrosscoder([3, 3], cfg, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    before = summed.encode(x).pre_acts
    cfg.reduce = "mean"
    after = summed.encode(x).pre_acts
    torch.testing.assert_close(after[:, :4], before[:, :4])
    torch.testing.assert_close(after[:, 4:], before[:, 4:] / 2)


def test_the_encoder_weight_under_mean_by_hand():
    cfg = DFCConfig(num_latents=3, k=3, exclusive_fractions=[1 / 3, 1 / 3], reduce="mean")
    crosscoder = DedicatedFeatureCrosscoder([1, 1], cfg, dtype=torch.float64)
    for weight, value in zip(crosscoder.encoder.weights, (6.0, 8.0, 4.0), strict=True):
        weight.data.fill_(value)
    # Exclusive latents read one source as they are, the shared one the mean of both.
    assert crosscoder.encoder_weight(0).flatten().tolist() == [6.0, 0.0, 2.0]
    assert crosscoder.encoder_weight(1).flatten().tolist() == [0.0, 8.0, 2.0]
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    assert crosscoder.encode(x).pre_acts.tolist() == [[6.0, 24.0, 8.0]]


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("arch", architecture_names())
def test_pre_activations_are_the_sum_over_the_encoder_weights(arch, sources, reduce):
    crosscoder = make(arch, {"reduce": reduce}, sources)
    crosscoder.encoder.bias.data.normal_()
    x = [torch.randn(6, d, dtype=torch.float64) for d in crosscoder.d_sources]
    summed = sum(part @ crosscoder.encoder_weight(s).T for s, part in enumerate(x))
    expected = (summed + crosscoder.encoder.bias).relu()
    torch.testing.assert_close(crosscoder.encode(x).pre_acts, expected, rtol=1e-10, atol=1e-12)


def detached(output: CrosscoderOutput) -> CrosscoderOutput:
    return tree_map(torch.Tensor.detach, output)


@pytest.mark.parametrize(
    "round_trip",
    [
        lambda out: out._replace(fvu=out.fvu),
        lambda out: CrosscoderOutput(**out._asdict()),
        lambda out: tree_unflatten(*tree_flatten(out)),
        lambda out: type(out)._make(out),
        copy.copy,
        lambda out: copy.deepcopy(detached(out)),
        lambda out: pickle.loads(pickle.dumps(detached(out))),
        detached,
    ],
)
def test_nothing_of_an_output_is_lost_on_the_way(round_trip):
    crosscoder = make("dfc", {})
    before = crosscoder(torch.randn(9, crosscoder.d_in, dtype=torch.float64))
    after = round_trip(before)
    assert type(after) is CrosscoderOutput and isinstance(after, ForwardOutput)
    assert len(tree_flatten(before)[0]) == 12  # nine tensors, and the three of the code
    sae_out, acts, indices, fvu, auxk_loss, multi_topk_fvu, *_ = after  # as sparsify has them
    expected = ForwardOutput(sae_out, acts, indices, fvu, auxk_loss, multi_topk_fvu)
    assert all(getattr(after, name) is part for name, part in expected._asdict().items())
    for name in (*ForwardOutput._fields, "loss", "errors", "cuts"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert torch.equal(after.code.to_dense(), before.code.to_dense())
    assert before._replace(loss=torch.tensor(7.0)).loss == 7


@pytest.mark.parametrize("arch", ["crosscoder", "dfc", "dsf"])
def test_every_source_begins_with_decoder_norm_and_a_transposed_encoder(arch):
    crosscoder = make(arch, {"decoder_init_norm": 0.4})
    for s in range(2):
        decoder, encoder = crosscoder.decoder(s), crosscoder.encoder_weight(s)
        assert decoder.shape == (40, crosscoder.d_sources[s])
        torch.testing.assert_close(decoder, encoder, rtol=0, atol=0)
        norms = decoder.norm(dim=1)
        written = norms > 0
        torch.testing.assert_close(norms[written], torch.full_like(norms[written], 0.4))
    assert torch.equal(crosscoder.b_dec, torch.zeros_like(crosscoder.b_dec))


@settings(deadline=None, max_examples=25)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    lead=st.sampled_from([(5,), (2, 3), (1, 1)]),
    training=st.booleans(),
)
def test_shapes_fit_uneven_widths_and_any_leading_dimensions(widths, lead, training):
    cfg = DFCConfig(num_latents=30, k=4, exclusive_fractions=[0.1] * len(widths))
    crosscoder = DedicatedFeatureCrosscoder(widths, cfg).train(training)
    x = [torch.randn(*lead, d) for d in widths]
    acts, indices, pre_acts = crosscoder.encode(x)
    assert acts.shape == indices.shape
    assert acts.shape[:-1] == lead
    assert pre_acts.shape == (*lead, 30)
    x_hat = crosscoder.decode(acts, indices)
    assert x_hat.shape == (*lead, sum(widths))
    # As delphi makes it dense: padding must not write over an activation.
    scattered = torch.zeros_like(pre_acts).scatter(-1, indices, acts)
    assert (scattered > 0).sum() == (acts > 0).sum()
    torch.testing.assert_close(scattered.sum(-1), acts.sum(-1))
    flat = torch.cat(x, -1).reshape(-1, sum(widths))
    torch.testing.assert_close(x_hat.reshape(-1, sum(widths)), crosscoder(flat).sae_out)


def test_wrong_widths_are_named():
    with pytest.raises(ValueError, match=r"width 12 = sum of \[7, 5\], got 11"):
        make("dfc", {})(torch.randn(3, 11))


@settings(deadline=None, max_examples=12)
@given(
    optimizer=st.sampled_from(["adam", "signum", "muon"]),
    steps=st.integers(1, 6),
    selection=st.sampled_from(["grouped", "joint"]),
)
def test_a_dfcs_forbidden_blocks_stay_exactly_zero(optimizer, steps, selection):
    crosscoder = make("dfc", {"selection": selection})
    before = crosscoder.W_dec.clone()
    train_a_little(crosscoder, optimizer, steps)
    assert not torch.equal(before, crosscoder.W_dec)
    for s, other in ((0, 1), (1, 0)):
        block = crosscoder.partition.exclusive(s)
        assert len(block) > 0
        rows = slice(block.start, block.stop)
        assert not crosscoder.decoder(other)[rows].any()
        assert not crosscoder.encoder_weight(other)[rows].any()
        assert crosscoder.decoder(s)[rows].norm(dim=1).min() > 0
        assert (crosscoder.relative_decoder_norm(s)[rows] == 1.0).all()


@pytest.mark.parametrize("optimizer", ["adam", "signum", "muon"])
def test_a_dsfs_designated_decoders_stay_tied(optimizer):
    crosscoder = make("dsf", {})
    train_a_little(crosscoder, optimizer, 4)
    block = crosscoder.partition.blocks[0]
    a, b = crosscoder.decoder(0), crosscoder.decoder(1)
    assert torch.equal(a[: block.stop], b[: block.stop])
    assert not torch.equal(a[block.stop :], b[block.stop :])
    assert not torch.equal(crosscoder.encoder_weight(0), crosscoder.encoder_weight(1))


@settings(deadline=None, max_examples=25)
@given(arch=st.sampled_from(architecture_names()), pairs=st.integers(5, 60))
def test_every_group_selects_its_own_budget(arch, pairs):
    crosscoder = make(arch, {})
    code = crosscoder.encode_sparse(torch.randn(pairs, crosscoder.d_in, dtype=torch.float64))
    for group, budget in zip(crosscoder.partition.groups, crosscoder.budgets(pairs), strict=True):
        columns = crosscoder.partition.group_slice(group)
        mine = (code.indices >= columns.start) & (code.indices < columns.stop)
        assert int(mine.sum()) == budget


def test_ranked_by_the_mean_norm_an_exclusive_latent_is_not_outbid_by_its_shared_twin():
    options = {"selection": "joint", "rank_by": "score"}
    by_sum, by_mean = make("dfc", options), make("dfc", {**options, "rank_by": "mean"})
    by_mean.load_state_dict(by_sum.state_dict())
    exclusive, shared = by_sum.partition.blocks[0].start, by_sum.partition.shared.start
    for crosscoder in (by_sum, by_mean):
        with torch.no_grad():  # both write the first source alike, one the second as much
            own = crosscoder.decoders[0][0]
            twin = crosscoder.decoders[-1][0].zero_()
            twin[: len(own)] = own
            twin[len(own)] = own.norm()
    sums, means = by_sum.score_norms(), by_mean.score_norms()
    assert sums[shared] == pytest.approx(2 * sums[exclusive])
    assert means[shared] == pytest.approx(means[exclusive])
    x = torch.randn(60, by_sum.d_in, dtype=torch.float64)
    codes = [crosscoder.encode_sparse(x) for crosscoder in (by_sum, by_mean)]
    assert len(codes[0].acts) == len(codes[1].acts)
    entries = [int((code.indices < shared).sum()) for code in codes]
    assert entries[0] < entries[1]


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("arch", architecture_names())
def test_inference_does_not_depend_on_the_batch(arch, learned):
    crosscoder = make(arch, {})
    x = torch.randn(40, crosscoder.d_in, dtype=torch.float64)
    if learned:
        crosscoder.update_threshold(crosscoder(x).cuts, 0.999)
    crosscoder.eval()
    whole = crosscoder.encode_sparse(x).to_dense()
    one_by_one = torch.cat([crosscoder.encode_sparse(row[None]).to_dense() for row in x])
    torch.testing.assert_close(whole, one_by_one)
    backwards = crosscoder.encode_sparse(x.flip(0)).to_dense().flip(0)
    torch.testing.assert_close(whole, backwards)


def test_the_first_threshold_selects_at_inference_what_training_selected():
    crosscoder = make("dfc", {})
    x = torch.randn(40, crosscoder.d_in, dtype=torch.float64)
    out = crosscoder(x)
    crosscoder.update_threshold(out.cuts - 1e-6, 0.999)
    assert torch.equal(crosscoder.eval().encode_sparse(x).indices, out.code.indices)


def test_thresholds_are_a_moving_average_and_ignore_groups_that_selected_nothing():
    crosscoder = make("dfc", {})
    crosscoder.update_threshold(torch.tensor([1.0, 2.0, torch.inf]), 0.9)
    crosscoder.update_threshold(torch.tensor([2.0, torch.inf, 4.0]), 0.9)
    assert crosscoder.threshold.tolist() == pytest.approx([1.1, 2.0, 4.0])
    assert crosscoder.threshold.dtype == torch.float32


@pytest.mark.parametrize("arch", architecture_names())
def test_buffers_keep_float32_in_a_bfloat16_crosscoder(arch):
    crosscoder = make(arch, {})
    crosscoder.update_threshold(torch.full_like(crosscoder.threshold, 1.2345678), 0.9)
    means = [torch.ones(d) / 3 for d in crosscoder.d_sources]
    crosscoder.set_normalization(means, torch.tensor([0.1, 0.3]))
    before = [crosscoder.threshold.clone(), crosscoder.mean.clone(), crosscoder.factors.clone()]
    crosscoder.to(torch.bfloat16)
    assert crosscoder.dtype == torch.bfloat16
    after = [crosscoder.threshold, crosscoder.mean, crosscoder.factors]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_normalisation_happens_inside_and_reconstructions_come_back_raw():
    plain = make("dfc", {})
    x = torch.randn(40, 12, dtype=torch.float64)
    means = [torch.full((7,), 3.0), torch.full((5,), -2.0)]
    factors = torch.tensor([0.5, 4.0])
    raw = torch.cat([x[:, :7] / 0.5 + 3.0, x[:, 7:] / 4.0 - 2.0], 1)
    expected = plain(x)
    plain.set_normalization(means, factors)
    out = plain([raw[:, :7], raw[:, 7:]])
    torch.testing.assert_close(out.fvu, expected.fvu)
    torch.testing.assert_close(plain.normalize(out.sae_out), expected.sae_out)
    torch.testing.assert_close(plain.denormalize(plain.normalize(raw)), raw)


def test_constant_sources_do_not_make_the_loss_nan():
    crosscoder = make("dfc", {})
    out = crosscoder(
        torch.zeros(4, 12, dtype=torch.float64),
        total_variance=torch.tensor(1.0),
        dead_mask=torch.ones(40, dtype=torch.bool),
    )
    assert out.auxk_loss == 0.0 and torch.isfinite(out.loss)
