import pytest
import torch

from sparsify_crosscoder.evaluation.toy import ToyConfig, ToyModel, ToyStream
from sparsify_crosscoder.evaluation.toy.presets import HARDER

# So few concepts that strengths can be read off the activations.
FEW = {"num_concepts": 20, "width": 40, "exclusive_ratio": 0.2, "mean_active": 3.0, "noise": 0.0}


def draw(toy, pairs=5_000, seed=0):
    return toy.sample(pairs, torch.Generator().manual_seed(seed))


def strengths_seen(toy, x, source):
    """The strengths that would give a source's activations, `[N, n of its concepts]`."""
    own = toy.exclusive(source)
    visible = [*own, *toy.shared]
    return x @ torch.linalg.pinv(toy.concepts[source][visible]), visible


def test_the_papers_model_has_its_numbers():
    toy = ToyModel(ToyConfig())
    assert [len(toy.exclusive(0)), len(toy.exclusive(1)), len(toy.shared)] == [51, 51, 1_946]
    assert [c.shape for c in toy.concepts] == [(2_048, 256)] * 2
    visible = toy.concepts[0].norm(dim=1)[[*toy.exclusive(0), *toy.shared]]
    torch.testing.assert_close(visible, torch.ones_like(visible))
    assert toy.probabilities.sum().item() == pytest.approx(20.48, rel=0.01)
    assert toy.probabilities.min() >= 1e-4


def test_no_source_has_the_concepts_of_another():
    toy = ToyModel(ToyConfig(**FEW, num_sources=3))
    for s in range(3):
        for other in set(range(3)) - {s}:
            rows = toy.exclusive(other)
            assert not toy.concepts[s][rows.start : rows.stop].any()
        assert toy.concepts[s][toy.shared.start :].any(1).all()


def test_another_sources_concepts_have_the_same_median_norm_and_other_directions():
    toy = ToyModel(ToyConfig())
    a, b = (c[toy.shared.start :] for c in toy.concepts)
    assert b.norm(dim=1).median() == pytest.approx(1, abs=0.02)
    assert torch.cosine_similarity(a, b).abs().mean() < 0.1
    spread = b.norm(dim=1).std()
    assert 0.02 < spread < 0.3


def test_activations_are_the_sum_of_the_active_concepts_a_source_has():
    toy = ToyModel(ToyConfig(**FEW))
    (a, b), strengths = draw(toy)
    for s, x in enumerate((a, b)):
        torch.testing.assert_close(x, strengths @ toy.concepts[s])
    assert ((strengths >= 0) & (strengths < 1)).all()


def test_concepts_are_as_frequent_as_their_probabilities_say():
    toy = ToyModel(ToyConfig(num_concepts=200, width=8, mean_active=5.0))
    _, strengths = draw(toy, 20_000)
    found = (strengths > 0).float().mean(0)
    p = toy.probabilities
    deviation = (p * (1 - p) / 20_000).sqrt()
    # The most probable concept also stands in for none.
    usual = torch.arange(200) != p.argmax()
    assert ((found - p).abs() / deviation)[usual].max() < 4.5
    assert found.sum() == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize("empty", ["most_probable", "restart", "keep"])
def test_pairs_without_a_concept(empty):
    toy = ToyModel(ToyConfig(num_concepts=50, width=8, mean_active=1.0, empty=empty))
    _, strengths = draw(toy)
    is_empty = ~(strengths > 0).any(1)
    assert is_empty.any() == (empty == "keep")
    without = ToyModel(ToyConfig(num_concepts=50, width=8, mean_active=1.0, empty="keep"))
    _, others = draw(without)
    was_empty = ~(others > 0).any(1)
    if empty == "most_probable":
        changed = strengths[was_empty] > 0
        assert (changed.sum(1) == 1).all()
        assert changed[:, toy.probabilities.argmax()].all()


def test_noise_has_its_size_in_every_dimension():
    quiet, loud = (ToyModel(ToyConfig(**{**FEW, "noise": size})) for size in (0.0, 0.2))
    (a, _), strengths = draw(loud)
    error = a - strengths @ quiet.concepts[0]
    assert error.std() == pytest.approx(0.2, rel=0.02)


def test_amplitudes_differ_between_the_sources_and_some_are_dropped():
    toy = ToyModel(ToyConfig(**FEW, **HARDER))
    activations, strengths = draw(toy)
    scales = []
    for s in range(2):
        seen, visible = strengths_seen(toy, activations[s], s)
        active = strengths[:, visible] > 0.05
        scale = seen[active] / strengths[:, visible][active]
        dropped = scale.abs() < 1e-3
        assert dropped.float().mean() == pytest.approx(0.1, abs=0.015)
        assert 0.499 < scale[~dropped].min() < 0.52 and 1.48 < scale[~dropped].max() < 1.501
        full = torch.zeros_like(strengths)
        full[:, visible] = torch.where(active, seen / strengths[:, visible].clamp_min(1e-9), 0)
        scales.append(full[:, toy.shared.start :])
    both = (scales[0] > 0.1) & (scales[1] > 0.1)
    correlation = torch.corrcoef(torch.stack([s[both] for s in scales]))[0, 1]
    assert abs(correlation) < 0.05


def test_a_bend_has_its_size_and_leaves_the_first_source_alone():
    straight, bent = (ToyModel(ToyConfig(**FEW, nonlinearity=size)) for size in (0.0, 0.5))
    (a0, b0), _ = draw(straight)
    (a1, b1), _ = draw(bent)
    torch.testing.assert_close(a0, a1)
    assert ((b1 - b0).norm() / b0.norm()).item() == pytest.approx(0.5, rel=0.1)
    # No linear map makes up for it.
    solution = torch.linalg.lstsq(b0, b1).solution
    assert (b1 - b0 @ solution).norm() > 0.1 * b1.norm()


def test_a_seed_is_one_toy_model():
    same = [ToyModel(ToyConfig(**FEW), seed=3) for _ in range(2)]
    other = ToyModel(ToyConfig(**FEW), seed=4)
    assert torch.equal(same[0].concepts[1], same[1].concepts[1])
    assert torch.equal(draw(same[0])[0][1], draw(same[1])[0][1])
    assert not torch.equal(same[0].probabilities, other.probabilities)


def test_a_stream_has_the_same_pairs_however_it_is_read():
    toy = ToyModel(ToyConfig(**FEW))
    whole = ToyStream(toy, 20_000, seed=5).sample(20_000)
    pieces = ToyStream(toy, 20_000, seed=5)
    for part in range(2):
        read = torch.cat([batch[part] for batch in pieces.batches(0, 8, 2_500)])
        assert torch.equal(read, whole[part])
    last = next(pieces.batches(7, 8, 2_500))
    assert torch.equal(last[0], whole[0][17_500:])
    again = next(pieces.batches(8, 9, 2_500))
    assert torch.equal(again[0], whole[0][:2_500])
    assert not torch.equal(ToyStream(toy, 20_000, seed=6).sample(100)[0], whole[0][:100])
    assert pieces.report().pairs == 2 * 20_000 + 2 * 2_500


@pytest.mark.parametrize(
    "wrong", [{"num_sources": 1}, {"drop": 1.5}, {"mean_active": 0.0}, {"exclusive_ratio": -0.1}]
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must|needs"):
        ToyConfig(**wrong)


def test_there_is_no_third_source():
    with pytest.raises(IndexError, match=r"0\.\.1"):
        ToyModel(ToyConfig(**FEW)).exclusive(2)
