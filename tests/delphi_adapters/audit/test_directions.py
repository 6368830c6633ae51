"""Which latents are worth looking at and verifying, by the list of differences and the filter."""

import pytest

from delphi_adapters.audit.directions import listed_or_kept
from delphi_adapters.explaining.choosing import chosen_latents, furthest
from sparsify_crosscoder.evaluation.filter import FilterRecord
from tests.support.crosscoders import make


def record(rows: list[tuple[int | None, list[int], bool]], kept: list[int]) -> FilterRecord:
    """A filter's list of (latent, members, whether it is a finding); of 0 to 9 it keeps some."""
    differences = [
        {"latent": latent, "members": [{"latent": one} for one in members], "finding": finding}
        for latent, members, finding in rows
    ]
    latents = [
        {
            "latent": latent,
            "source": latent % 2,
            "verdict": "kept" if latent in kept else "predictable",
            "score": 0.5,
        }
        for latent in range(10)
    ]
    return FilterRecord.of(
        {
            "rows": differences,
            "verdicts": [],
            "clusters": [],
            "duplicates": [],
            "latents": latents,
        }
    )


def test_what_a_finding_is_named_by_is_verified_before_what_is_kept_and_in_none():
    rows = [(3, [5, 8], True), (None, [], True), (7, [], True), (2, [], False)]
    filtered = record(rows, kept=[0, 2, 7, 8])
    assert listed_or_kept([3, 5, 8, 7, 2, 0, 1], filtered) == [
        *((3, "listed"), (8, "kept"), (7, "kept")),
        *((2, "kept"), (0, "kept")),
    ]


def test_of_a_filter_of_an_earlier_version_what_it_keeps_is_verified():
    filtered = FilterRecord.of({**record([], [4, 1]).found} | {"rows": []})
    assert listed_or_kept([4, 1, 0], filtered) == [(4, "kept"), (1, "kept")]


@pytest.mark.parametrize("arch", ["dfc", "crosscoder"])
def test_listed_latents_are_the_exclusive_ones_and_those_of_findings(arch):
    crosscoder = make(arch, {})
    shared = int(crosscoder.partition.shared[0])
    filtered = record([(shared, [], True), (None, [], True), (shared + 1, [], False)], [])
    exclusive = chosen_latents(["exclusive"], crosscoder, lambda: filtered)
    listed = chosen_latents(["listed"], crosscoder, lambda: filtered)
    assert listed == sorted({*exclusive, shared})
    if arch == "crosscoder":
        assert exclusive == furthest(crosscoder)
