"""Neighbouring layers against each other: whose nulls crosscoders are, and what is counted."""

import layer_nulls

from sparsify_crosscoder import Run


def test_q_is_by_crosscoders_of_other_seeds(run, twins):
    runs = {
        ("middle", 0): Run.open(run),
        ("middle", 1): Run.open(twins),
        ("early", 1): Run.open(twins),
        ("early", 0): Run.open(run),
    }
    rows = list(layer_nulls.rows_of(runs))
    assert [(row.depth, row.seed, row.nulls) for row in rows] == [
        (depth, seed, nulls) for depth, seed in runs for nulls in layer_nulls.NULLS
    ]
    assert all(0 <= row.kept <= row.tested and row.tested > 0 for row in rows)
    # The same list by the same nulls, at whichever depth these are said to be.
    first = {row.nulls: row.kept for row in rows[:3]}
    assert first["same depth"] == first["other depth"] == first["both"]


def test_the_table_counts_seeds_together():
    rows = [
        layer_nulls.Row(depth, seed, nulls, kept=seed, tested=100, by_default=2)
        for depth in layer_nulls.DEPTHS
        for seed in (0, 1)
        for nulls in layer_nulls.NULLS
    ]
    lines = layer_nulls.row_table(rows)
    assert len(lines) == 2 + 2 * len(layer_nulls.NULLS)
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:4] == ["15, 16", "same depth", "0, 1", "200"]
    assert cells[4].startswith("0.0050 (") and cells[5] == "2, 2"
