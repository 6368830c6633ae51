"""What a run's training left out as outliers, all that reads the run leaves out as well."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from delphi_adapters.delphi.crosscoder_cache import run_cache
from sparsify_crosscoder import Run, compare_runs, filter_exclusives, top
from sparsify_crosscoder.evaluation.differences import list_differences
from sparsify_crosscoder.interventions.basis import IdentityFit
from sparsify_crosscoder.interventions.targets import TargetOptions, latent_targets

STRICT = 1.0  # half of the pairs of a source have a larger norm than the median


def with_multiple(folder, multiple) -> Run:
    opened = Run.open(folder)
    return replace(opened, config=replace(opened.config, outlier_multiple=multiple))


def fires_in_filter(run: Run, _) -> Any:
    return filter_exclusives(run).judged.firings.tolist()


def fires_in_the_list(run: Run, _) -> Any:
    return list_differences(run).pairs


def stable_clusters(run: Run, folder) -> Any:
    found = compare_runs([run, replace(run, path=folder)])
    return [[cluster.firings for cluster in one.clusters] for one in found.found], found.verdicts


def largest_in_top(run: Run, _) -> Any:
    return [report.snippets[0].activation for report in top(run, count=8).reports]


def s_max(run: Run, _) -> Any:
    latents = list(range(run.crosscoder().partition.exclusive(0).stop))
    targets = latent_targets(run, latents, TargetOptions(source=0, pairs=4_000), "cpu").targets
    return [one.scale for one in targets[0].steering]


def firings_in_the_cache(run: Run, folder) -> Any:
    name = f"cache-{run.config.outlier_multiple}"
    return run_cache(run, run.crosscoder(), folder / name, ctx_len=64).run().firings.tolist()


READERS = [
    *(fires_in_filter, fires_in_the_list, stable_clusters, largest_in_top, s_max),
    firings_in_the_cache,
]


@pytest.mark.parametrize("read", READERS)
def test_a_reader_leaves_out_what_the_runs_multiple_says(
    read: Callable[..., Any], run, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "again").symlink_to(run)
    place = tmp_path / "again" if read is stable_clusters else tmp_path
    strict, usual, all_pairs = (read(with_multiple(run, m), place) for m in (STRICT, 2.0, 0.0))
    assert strict != usual and strict != all_pairs


def test_latents_are_carried_by_a_basis_measured_without_the_runs_outliers(twins, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    measured = []
    r2 = IdentityFit.r2
    monkeypatch.setattr(IdentityFit, "r2", lambda fit: measured.append(fit.pairs) or r2(fit))
    for multiple in (0.0, STRICT):
        crosscoder = with_multiple(twins, multiple).crosscoder()
        latent = crosscoder.partition.exclusive(0).start
        asked = TargetOptions(source=1, pairs=2_000)
        latent_targets(with_multiple(twins, multiple), [latent], asked, "cpu")
    assert 0 < measured[-1] < measured[0]
