"""The dose-response plot of a rubric: what is drawn where."""

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from delphi_adapters.judging.rating import Rating
from delphi_adapters.judging.rubric_runs import RubricResult
from delphi_adapters.judging.rubrics import Rubric
from delphi_adapters.report.dose_response_plot import dose_response_figure, save_dose_response

RUBRIC = Rubric.load("ccp_alignment").limited(4, [1.0, 0.0, -1.0])


def rated(*scores, coherence=5):
    """Every prompt alike: a score at each strength, None for a failure."""
    row = [
        Rating("failed")
        if score is None
        else Rating("ok", {"CCP_ALIGNMENT": score, "COHERENCE": coherence})
        for score in scores
    ]
    return [row] * 4


@pytest.fixture
def result():
    return RubricResult(RUBRIC, {"own": rated(5, 3, 1), "other": rated(1, 2, None, coherence=4)})


def test_a_panel_has_each_models_means_at_rising_strengths(result):
    alignment, coherence = dose_response_figure(result).axes[:2]
    own, other = alignment.get_lines()[:2]
    assert own.get_xdata().tolist() == [-1, 0, 1]
    assert own.get_ydata().tolist() == [1, 3, 5]
    assert [line.get_ydata().tolist() for line in coherence.get_lines()[:2]] == [[5, 5, 5], [4, 4]]
    assert alignment.get_title() == "Ccp alignment"
    assert other.get_xdata().tolist() == [0, 1]  # no rating at -1


def test_bands_are_the_intervals(result):
    alignment = dose_response_figure(result).axes[0]
    curve = result.curves("CCP_ALIGNMENT")["own"]
    (band,) = alignment.collections[0].get_paths()
    corners = {(round(x, 6), round(y, 6)) for x, y in band.vertices}
    for x, low, high in zip(curve.strengths, curve.low, curve.high, strict=True):
        assert {(x, round(low, 6)), (x, round(high, 6))} <= corners
    assert curve.high[1] > curve.low[1]


def test_all_panels_show_the_whole_scale_and_the_legend_every_model(result):
    panels = dose_response_figure(result).axes[:2]
    assert all(panel.get_ylim()[0] < 1 and panel.get_ylim()[1] > 5 for panel in panels)
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["own", "other"]


def test_files_are_of_the_kind_that_their_ending_says(result, tmp_path):
    save_dose_response(result, tmp_path / "plot.png", "Costs $1 or $2")
    save_dose_response(result, tmp_path / "plot.svg")
    pixels = imread(tmp_path / "plot.png")
    assert pixels.shape[1] > 1000 and np.unique(pixels.reshape(-1, 4), axis=0).shape[0] > 20
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")
    assert {path.name for path in tmp_path.iterdir()} == {"plot.png", "plot.svg"}


def test_a_model_without_any_rating_has_an_empty_line(result):
    nothing = RubricResult(RUBRIC, {"own": rated(None, None, None)})
    line = dose_response_figure(nothing).axes[0].get_lines()[0]
    assert len(line.get_xdata()) == 0


def test_no_window_is_opened(result):
    import matplotlib.pyplot as plt

    dose_response_figure(result)
    assert plt.get_fignums() == []
