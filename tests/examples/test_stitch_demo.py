"""`sparsify-crosscoder stitch` on the demo's two real models."""

import pytest

from sparsify_crosscoder import Stitching
from sparsify_crosscoder.__main__ import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("demo"),  # one worker makes what they share
]


def test_the_demos_models_are_stitched_as_well_as_in_closed_form(demo, tmp_path):
    main(["stitch", str(demo[0] / "demo"), "--out", str(tmp_path / "stitching"), "--seed", "3"])
    stitching = Stitching.load(tmp_path / "stitching")
    report, text = stitching.report, stitching.text
    assert report["pairs"] > 80_000 and report["held_out_pairs"] > 8_000
    assert text["trained_on"] == 0 and text["partly_trained_on"] > 0
    for one in report["directions"]:
        assert one["r2_closed_form"] > 0.6
        assert abs(one["difference"]) < 0.01
    for trip in report["round_trips"]:
        assert trip["r2"] > 0.85 and trip["r2"] > trip["r2_closed_form"] + 0.05
