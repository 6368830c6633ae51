"""Steered answers that are no text any more are not shown, and it is said."""

import pytest

from delphi_adapters.report.coherent import NO_TEXT, coherent_count, without_gibberish
from delphi_adapters.report.data import SteeredOutputs

STRENGTHS = [0.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("surprise", "repetition", "count"),
    [
        ([[1.0, 1.5, 1.9, 2.0]], [[0.1, 0.1, 0.2, 0.6]], 4),
        ([[1.0, 1.5, 2.1, 1.2]], [[0.0, 0.0, 0.0, 0.0]], 2),
        ([[1.0, 0.5, 0.2, 0.1]], [[0.1, 0.1, 0.2, 0.7]], 3),
        ([[1.0, 3.0, 1.0, 9.0], [1.0, 0.5, 1.0, 9.0]], [[0.0] * 4] * 2, 3),
    ],
)
def test_answers_are_text_up_to_a_nat_a_token_and_half_of_repetitions(surprise, repetition, count):
    measures = {"surprise": surprise, "repetition": repetition}
    assert coherent_count(STRENGTHS, measures) == count
    assert coherent_count([1.0, *STRENGTHS[1:]], measures) == 4


OUTPUTS = SteeredOutputs(["Hm?"], STRENGTHS, ["a", "b"], [[list("pqrs")], [list("tuvw")]])


def test_of_each_model_answers_are_shown_as_long_as_they_are_text():
    shown = without_gibberish(OUTPUTS, [2, 3])
    assert shown.strengths == [0.0, 2.0, 4.0]
    assert shown.answers == [[["p", "q", NO_TEXT]], [["t", "u", "v"]]]
    assert "of a above 2, of b above 4 are no text any more" in shown.note
    assert "--gibberish" in shown.note


def test_where_all_are_text_nothing_is_left_out():
    assert without_gibberish(OUTPUTS, [4, 4]) is OUTPUTS
