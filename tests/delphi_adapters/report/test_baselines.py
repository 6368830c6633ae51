"""What the simplest methods see, in a report beside the list of what differs."""

from delphi_adapters.report.baselines import baseline_lines, baseline_sheet, beside_sheet
from delphi_adapters.report.overview import overview
from tests.support.report import MODELS, simple_methods, small_report


def test_it_says_which_entries_of_the_list_are_in_the_same_texts():
    found = simple_methods()
    rows = baseline_sheet(found, MODELS).rows
    assert [row[0] for row in rows] == ["kl", "kl", "token", "component"]
    assert [row[-1] for row in rows] == ["-", "-", "1", "-"]
    assert rows[0][2:5] == ["a <b>passage</b>", "0.7 (0.5 to 0.9)", "nats a token"]
    assert rows[2][2] == "models/alpha: ' it'"
    first, second = beside_sheet(found).rows
    assert first == ["1", "3, 4", "4.5 by kl", "10.5", "2 (1.0 by chance)", "token 1"]
    assert second[2] == "13.5 by kl" and second[-1] == "only the crosscoder"
    *_, last = baseline_lines(found, MODELS)
    assert "Of 2 entries of the list 1 are in the same texts" in last
    assert last.endswith("only the crosscoder has 2.")


def test_the_first_page_has_both_lists_beside_each_other():
    titles = [sheet.title for sheet in overview(small_report())]
    assert titles[:2] == [
        "What the simplest methods see",
        "What differs, beside the simplest methods",
    ]
    assert [one.title for one in overview(small_report(baselines=None))] == titles[2:]
