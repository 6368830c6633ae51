import copy
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder import DedicatedFeatureCrosscoder, DFCConfig
from sparsify_crosscoder.evaluation.clusters import clusters
from sparsify_crosscoder.evaluation.matching import (
    LEAST_CORRELATION,
    LEAST_COSINE,
    Criterion,
    FoundClusters,
    Matched,
)
from sparsify_crosscoder.evaluation.stability import NullRun, stability
from sparsify_crosscoder.store.tensor_stream import TensorStream
from tests.support.clusters import PAIRS, copied_latents, filtered


@pytest.fixture
def crosscoder():
    return copied_latents()


def events(seed=0):
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(PAIRS, 3, generator=generator) < 0.1
    size = active * (1 + torch.rand(PAIRS, 3, generator=generator))
    a, b = (0.05 * torch.randn(PAIRS, 6, generator=generator) for _ in "ab")
    a[:, :2] += size[:, :2]
    b[:, 2:4] += size[:, 1:]
    return TensorStream([a, b])


def rearranged(crosscoder):
    """The same crosscoder with the latents of every block in reverse."""
    other = copy.deepcopy(crosscoder)
    with torch.no_grad():
        for weight in (*other.encoder.weights, *other.decoders):
            weight.copy_(weight.flip(0))
    return other


def found(crosscoder, name, keep=None):
    listed = clusters(crosscoder, filtered(crosscoder))
    return FoundClusters(name, crosscoder, listed if keep is None else [listed[i] for i in keep])


@pytest.fixture
def three_runs(crosscoder):
    first = found(crosscoder, "a")
    reverse = rearranged(crosscoder)
    mirrored = []
    for cluster in first.clusters:
        block = crosscoder.partition.exclusive(cluster.source)
        moved = [block.start + block.stop - 1 - latent for latent in cluster.latents]
        mirrored.append(copy.copy(cluster))
        mirrored[-1].latents = moved
    second = FoundClusters("b", reverse, mirrored[::-1])
    return [first, second, found(crosscoder, "c", keep=[0])]


def test_what_all_runs_find_comes_first_and_what_one_lacks_after(three_runs):
    result = stability(three_runs, events())
    assert [one.members for one in result.differences] == [
        {"a": 0, "b": 1, "c": 0},
        {"a": 1, "b": 0},
    ]
    assert [one.source for one in result.differences] == [0, 1]
    assert all(one.cosine > 0.99 and one.correlation > 0.99 for one in result.differences)
    assert len(result.found_by(3)) == 1 and len(result.found_by(2)) == 2
    assert 0 < result.null_correlation < 0.1
    lines = result.table().splitlines()
    assert lines[2].endswith("| 3/3 |") and "| - |" in lines[3]


def test_the_same_direction_at_other_times_is_another_difference(three_runs):
    first = three_runs[0]
    elsewhere = copy.deepcopy(first.crosscoder)
    with torch.no_grad():  # still writes the first dimension, but reads the second
        elsewhere.encoder.weights[0][:2, 0], elsewhere.encoder.weights[0][:2, 1] = 0.0, 1.0
    other = FoundClusters("other", elsewhere, first.clusters[:1])
    result = stability([first, other], events())
    assert [len(one.members) for one in result.differences] == [1, 1, 1]


def test_the_same_times_in_another_direction_are_another_difference(three_runs):
    first = three_runs[0]
    turned = copy.copy(first.clusters[0])
    turned.direction = first.clusters[0].direction.roll(1)
    other = FoundClusters("other", first.crosscoder, [turned])
    result = stability([first, other], events())
    assert max(len(one.members) for one in result.differences) == 1


def test_different_things_that_look_alike_match_in_their_own_run(three_runs):
    first = three_runs[0]
    copied, other = first.clusters
    halves = copy.copy(copied), copy.copy(copied)  # copies that the run takes for two things
    halves[0].latents, halves[1].latents = copied.latents[:1], copied.latents[1:]
    crowded = FoundClusters("crowded", first.crosscoder, [halves[0], other, halves[1]])
    result = stability([first, crowded], events())
    assert result.own_run == Matched(2, 5)
    assert result.next_run == Matched(5, 5)
    assert result.criterion == Criterion(LEAST_COSINE, LEAST_CORRELATION)
    text = result.text()
    assert f"cosine of {LEAST_COSINE} of" in text and f"correlation of {LEAST_CORRELATION}" in text
    assert "a different thing: 2 of 5 (40%, 95% interval 12% to 77%)" in text


def test_the_guide_says_what_makes_two_clusters_one_difference():
    page = Path(__file__).parents[2] / "docs" / "guides" / "differences.md"
    guide = page.read_text(encoding="utf-8")
    said = f"from a cosine of {LEAST_COSINE} of their directions and a correlation of "
    said += f"{LEAST_CORRELATION} of their activations"
    assert said in " ".join(guide.split())


def test_a_run_finds_in_the_next_one_only_what_that_has(three_runs):
    result = stability(three_runs, events())
    # a finds both in b, b one of two in c, c its one in a.
    assert result.next_run == Matched(4, 5) and result.own_run == Matched(0, 5)


def test_clusters_of_null_runs_are_matched_with_the_runs_and_with_each_other(three_runs):
    first, second = three_runs[:2]
    layers, precision = (copy.deepcopy(first.crosscoder) for _ in "ab")
    layers.sources = [{"name": "m", "hookpoint": f"layers.{n}"} for n in (1, 2)]
    precision.sources = [{"name": name, "hookpoint": "layers.1"} for name in ("m", "m-int8")]
    found_too = NullRun(FoundClusters("layers", layers, first.clusters[:1]), events())
    same_pair = NullRun(FoundClusters("seed", layers, first.clusters[:1]), events())
    result = stability([first, second], events(), nulls=[found_too, same_pair])
    assert result.nulls == {"layers": Matched(2, 4), "seed": Matched(2, 4)}
    assert result.between_nulls is None  # both are of one pair
    other = NullRun(FoundClusters("other", precision, first.clusters), events())
    result = stability([first, second], events(), nulls=[found_too, other])
    assert result.between_nulls == Matched(2, 3)
    assert "the null run layers: 2 of 4" in result.text()
    assert "null runs that match one of another pair: 2 of 3" in result.text()
    assert result.to_dict()["nulls"]["layers"]["matched"] == 2


def test_null_runs_are_compared_by_sources_of_one_width(three_runs):
    wide = DedicatedFeatureCrosscoder([6, 7], DFCConfig(num_latents=20, k=4))
    null = NullRun(FoundClusters("wide", wide, []), events())
    result = stability(three_runs[:2], events(), nulls=[null])
    assert result.nulls["wide"] == Matched(0, 2)  # those of the second source are left out
    both = DedicatedFeatureCrosscoder([7, 7], DFCConfig(num_latents=20, k=4))
    with pytest.raises(ValueError, match=r"widths \[7, 7\], none of which"):
        stability(three_runs[:2], events(), nulls=[NullRun(FoundClusters("w", both, []), events())])


def test_runs_without_clusters_are_compared_as_well(three_runs):
    result = stability(
        [three_runs[0], FoundClusters("none", three_runs[0].crosscoder, [])], events()
    )
    assert [one.members for one in result.differences] == [{"a": 0}, {"a": 1}]
    assert result.null_correlation == 0
    assert str(result.own_run) == "0 of 2 (0%, 95% interval 0% to 66%)"


def test_runs_over_other_sources_and_single_runs_are_refused(three_runs):
    other = DedicatedFeatureCrosscoder([6, 7], DFCConfig(num_latents=20, k=4))
    with pytest.raises(ValueError, match="'x' has other sources than 'a'"):
        stability([three_runs[0], FoundClusters("x", other, [])], events())
    with pytest.raises(ValueError, match="two runs or more"):
        stability(three_runs[:1], events())
    with pytest.raises(ValueError, match="a name of its own"):
        stability([three_runs[0], three_runs[0]], events())
