"""The benchmark of the report's page: what it is given and what is made of the times."""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
benchmark = importlib.import_module("report")
made_up_report = importlib.import_module("report_data").made_up_report


def row(latents, **times):
    acts = ("open overview", "open latents", "latent", "sort", "first search", "search")
    ms = {**dict.fromkeys(acts, 100.0), **{name.replace("_", " "): t for name, t in times.items()}}
    return {
        "latents": latents,
        "detailed": 10,
        "bytes": 2_500_000,
        "write_seconds": 1.25,
        "slowest_sort": "sort by reason",
        "ms": ms,
    }


def test_made_up_reports_are_the_same_each_time_and_as_large_as_asked():
    first, second = made_up_report(64, 20), made_up_report(64, 20)
    assert first.features.equals(second.features)
    assert first.features.num_rows == 64 and len(set(first.detailed)) == 20
    assert first.details(3) == second.details(3)
    assert sum(first.filter["verdicts"][0].values()) == 8


def test_claims_are_of_ten_thousand_latents():
    rows = [row(10_000, sort=299.0, open_latents=3_000.0), row(131_072, sort=900.0)]
    found = {claim["claim"]: claim["holds"] for claim in benchmark.judge(rows)}
    assert found == {"open overview": True, "open latents": False, "sort": True}


def test_the_report_shows_sizes_times_and_claims():
    rows = [row(10_000, sort=301.0)]
    report = {"processor": "P", "browser": "B", "repeats": 3, "rows": rows}
    text = benchmark.show({**report, "claims": benchmark.judge(rows)})
    assert "reason" in text and "2.5" in text and "FAIL" in text
    assert "FAIL" not in benchmark.show({**report, "claims": []})
