"""The benchmark's times are those of a browser that did what they are named after."""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[3]
benchmark = importlib.import_module("report")


def test_every_act_is_done_and_timed(browser, tmp_path):
    row = benchmark.measure(browser, benchmark.Size(60, 20), 1, tmp_path)
    assert row["bytes"] == (tmp_path / "report.html").stat().st_size
    sorts = {f"sort by {column}" for column in benchmark.SORTED}
    acts = {"open overview", "open latents", "first search", "search", "latent", *sorts}
    assert row["all_ms"].keys() == acts and row["ms"].keys() == {*acts, "sort"}
    assert {len(times) for times in row["all_ms"].values()} == {1}
    assert row["slowest_sort"] == max(sorts, key=lambda act: row["ms"][act])
    assert row["ms"]["sort"] == row["ms"][row["slowest_sort"]]
    assert benchmark.CLAIMS.keys() <= row["ms"].keys()
