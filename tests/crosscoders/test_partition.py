import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify_crosscoder import (
    Crosscoder,
    CrosscoderConfig,
    DedicatedFeatureCrosscoder,
    DesignatedSharedFeatureCrosscoder,
    DFCConfig,
    DSFConfig,
)
from sparsify_crosscoder.crosscoders import Block, Group, Partition


def test_the_papers_dfc_has_6554_exclusive_latents_a_model():
    cfg = DFCConfig(num_latents=131_072, k=200)
    partition = DedicatedFeatureCrosscoder.make_partition(131_072, [4096, 2880], cfg)
    assert partition.sizes == {"exclusive_0": 6554, "exclusive_1": 6554, "shared": 117_964}
    assert partition.exclusive(0) == range(0, 6554)
    assert partition.exclusive(1) == range(6554, 13_108)
    assert partition.shared == range(13_108, 131_072)


def test_a_dfcs_groups_share_k_between_the_exclusive_blocks_and_the_shared_one():
    cfg = DFCConfig(num_latents=100, k=20, exclusive_fractions=[0.1, 0.3])
    groups = DedicatedFeatureCrosscoder.make_partition(100, [4, 4], cfg).groups
    assert [g.share for g in groups] == pytest.approx([0.025, 0.075, 0.9])


def test_joint_selection_puts_all_latents_of_a_dfc_into_one_group():
    cfg = DFCConfig(num_latents=100, k=20, selection="joint")
    partition = DedicatedFeatureCrosscoder.make_partition(100, [4, 4], cfg)
    assert partition.groups == (Group((0, 1, 2), 1.0),)


def test_a_dsfs_designated_tenth_selects_twice_its_share():
    partition = DesignatedSharedFeatureCrosscoder.make_partition(1000, [8, 8], DSFConfig())
    assert partition.sizes == {"designated": 100, "rest": 900}
    assert [g.share for g in partition.groups] == pytest.approx([0.2, 0.9])
    assert partition.shared == range(1000)
    assert [block.tied for block in partition.blocks] == [True, False]


def test_a_standard_crosscoder_has_no_exclusive_latents():
    partition = Crosscoder.make_partition(50, [3, 4, 5], CrosscoderConfig(k=2))
    assert [len(partition.exclusive(s)) for s in range(3)] == [0, 0, 0]
    assert partition.shared == range(50)


@given(
    num_latents=st.integers(20, 3000),
    fractions=st.lists(st.floats(0, 0.3), min_size=2, max_size=3),
)
def test_blocks_are_disjoint_and_cover_all_latents(num_latents, fractions):
    cfg = DFCConfig(num_latents=num_latents, k=1, exclusive_fractions=fractions)
    partition = DedicatedFeatureCrosscoder.make_partition(num_latents, [4] * len(fractions), cfg)
    covered = [i for s in range(len(fractions)) for i in partition.exclusive(s)]
    covered += list(partition.shared)
    assert covered == list(range(num_latents))
    for s, fraction in enumerate(fractions):
        assert len(partition.exclusive(s)) == round(fraction * num_latents)
    assert sum(g.share for g in partition.groups) == pytest.approx(1.0)


def test_a_partition_with_a_hole_or_a_block_in_no_group_is_refused():
    with pytest.raises(ValueError, match="next free latent is 2"):
        Partition(2, (Block("a", 0, 2, (0,)), Block("b", 3, 4, (1,))), (Group((0, 1), 1.0),))
    with pytest.raises(ValueError, match="exactly one group"):
        Partition(2, (Block("a", 0, 2, (0,)), Block("b", 2, 4, (1,))), (Group((0,), 1.0),))
    with pytest.raises(ValueError, match="unknown sources"):
        Partition(2, (Block("a", 0, 2, (2,)),), (Group((0,), 1.0),))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DFCConfig(exclusive_fractions=[0.5, 0.5]), "sum"),
        (lambda: DFCConfig(exclusive_fractions=[-0.1, 0.5]), r"\[0, 1\]"),
        (lambda: DFCConfig(exclusive_budget=0), "exclusive_budget"),
        (lambda: DSFConfig(designated_fraction=1.0), "designated_fraction"),
        (lambda: CrosscoderConfig(normalize_decoder=True), "relative decoder norms"),
        (lambda: CrosscoderConfig(k=0), "at least 1"),
        (lambda: CrosscoderConfig(multi_topk=True), "multi_topk"),
        (
            lambda: DesignatedSharedFeatureCrosscoder([8, 9], DSFConfig(num_latents=64, k=4)),
            r"equal widths, got \[8, 9\]",
        ),
        (
            lambda: DedicatedFeatureCrosscoder([8, 9, 10], DFCConfig(num_latents=64, k=4)),
            "2 fractions for 3 sources",
        ),
        (lambda: Crosscoder([8, 9], CrosscoderConfig(num_latents=64, k=65)), "k=65 is larger"),
        (lambda: Crosscoder([8], CrosscoderConfig(num_latents=64, k=4)), "at least two sources"),
        (lambda: DedicatedFeatureCrosscoder([8, 9], CrosscoderConfig(k=4)), "needs a DFCConfig"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_number_of_latents_defaults_to_the_expansion_of_the_widest_source():
    assert CrosscoderConfig().resolve_num_latents([4096, 2880]) == 131_072
