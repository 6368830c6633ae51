"""The benchmark's times are those of a browser that did what they are named after."""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[3]
benchmark = importlib.import_module("report")


def test_every_act_is_done_and_timed(browser, tmp_path):
    row = benchmark.measure(browser, benchmark.Size(60, 20), 1, tmp_path)
    assert row["bytes"] == (tmp_path / "report.html").stat().st_size
    assert {*benchmark.CLAIMS, "latent", "search"} <= set(row["ms"])
    assert all(taken > 0 for taken in row["ms"].values())
    assert row["ms"]["sort"] == row["ms"][row["slowest_sort"]]
