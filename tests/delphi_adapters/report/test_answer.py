"""The first screen in sentences, and the same list as a picture."""

import xml.etree.ElementTree as ET

import pytest

from delphi_adapters.pictures.finding_list import BAR_WIDE
from delphi_adapters.report import Searched, write_report
from delphi_adapters.report.answer import answer, picture_of
from delphi_adapters.report.overview import overview
from tests.support.report import (
    difference,
    hostile_report,
    listed_report,
    planted_recall,
    small_report,
)

SURE = {"q_value": 0.04, "q_interval": [0.01, 0.2]}


def found(**changes):
    rows = [
        difference(1, 0, 0, **SURE),
        difference(2, 3, 1),
        difference(3, None, 1, kind="mean", verdict="mean"),
    ]
    return listed_report(rows, **changes)


def test_each_paragraph_says_what_how_sure_what_steering_does_and_an_example():
    counted, sea, law, shift, *_, missed = answer(found())
    assert counted.lead == "3 differences between alpha and beta in 200 texts."
    assert sea.lead == "1. Latent 0, which only alpha has (exclusive; the filter: predictable)."
    for expected in (
        "About: harbour (9 of 10), sails (4 of 10).",
        "On 0.50% of the pairs, in 21 of 200 texts.",
        "q 0.04 (0.01 to 0.20): Of the list down to this one 4% (1% to 20%)",
        "It promotes “ sea”, “ boat”.",
        "next words change alike by 0.10 (1: the same).",
        "Example: a» ship« sails",
    ):
        assert expected in sea.text
    assert "no error rate was measured" in law.text and "It was not steered with." in law.text
    assert "It has no latent to steer with." in shift.text and "On every pair." in shift.text
    assert missed.lead == "What was not found."
    assert "No known difference was planted" in missed.text


def test_what_could_not_have_been_found_is_told_from_the_plants():
    text = answer(found(power=planted_recall(3, 8)))[-1].text
    assert "5 of 8 differences that were planted would have been missed" in text
    assert "smaller or rarer" in text


def test_a_steered_answer_is_quoted_at_its_strength():
    listed = {"differences": [difference(1, 0, 0)], "searched": Searched(200, None)}
    text = answer(small_report(**listed))[1].text
    quoted = "“What is on your mind?” with “model 0, prompt 0, strength 8.0”."
    assert f"At strength 8 models/alpha answers {quoted}" in text
    assert "exclusivity of its effect is 4.5 of 5" in text


def test_an_empty_list_says_so_first_and_a_report_without_a_list_nothing():
    assert answer(listed_report([]))[0].lead.startswith("No difference between the models")
    assert answer(small_report()) == []


@pytest.mark.parametrize("rows", [3, 14])
def test_the_picture_has_the_values_of_the_list_and_bars_to_scale(tmp_path, rows):
    more = [difference(rank, 4, 0) for rank in range(4, rows + 1)]
    data = found()
    data.differences += more
    write_report(data, tmp_path)
    root = ET.parse(tmp_path / "findings.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    texts = [one.text for one in root.iter(f"{space}text")]
    sheet = next(one for one in overview(data) if one.title == "What differs")
    drawn = min(rows, 10)
    values = [text for text in texts if text and text.startswith("score ")]
    assert [text.split()[1].rstrip(",") for text in values] == [r[6] for r in sheet.rows[:drawn]]
    assert values[0] == "score 0.50, q 0.04 (0.01 to 0.20)"
    assert values[1] == "score 0.25, no error rate known"
    bars = [float(one.get("width")) for one in root.iter(f"{space}rect") if one.get("rx")][1::2]
    assert bars[:3] == pytest.approx([BAR_WIDE, BAR_WIDE / 2, BAR_WIDE / 3], abs=0.01)
    described = root.find(f"{space}desc").text
    assert root.get("role") == "img" and all(value in described for value in values)
    assert root.find(f"{space}title").text == data.title


def test_the_picture_asks_for_nothing_and_both_files_are_named_in_the_report(tmp_path):
    pytest.importorskip("matplotlib")
    write_report(found(), tmp_path)
    drawn = (tmp_path / "findings.svg").read_text(encoding="utf-8")
    assert drawn.count("http") == 1 and "href" not in drawn and "url(" not in drawn
    assert (tmp_path / "findings.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "findings.png").stat().st_size < 300_000
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8").replace("\\", "")
        assert "findings.svg" in text and "findings.png" in text


def test_texts_that_mean_harm_are_only_text_in_the_picture(tmp_path):
    data = hostile_report()
    data.differences, data.searched = [difference(1, 0, 0)], Searched(200, None)
    write_report(data, tmp_path)
    root = ET.parse(tmp_path / "findings.svg").getroot()
    assert {one.tag.partition("}")[2] for one in root.iter()} == {
        *("svg", "title", "desc", "rect", "text"),
    }
    assert picture_of(data).height < 1_000
