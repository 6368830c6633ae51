"""Sections are read however a model writes them, and a verdict is never guessed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delphi_adapters.judging.sections import (
    find_sections,
    read_yes_no,
    section_text,
    section_verdict,
)

LABELS = ("EXPLANATION", "HARMFUL", "HARMFUL_REASON")


def read(text: str):
    sections = find_sections(text, LABELS)
    return (
        section_text(sections, "EXPLANATION"),
        section_verdict(sections, "HARMFUL").value,
        section_text(sections, "HARMFUL_REASON"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "[EXPLANATION]: Dates.\n[HARMFUL]: no\n[HARMFUL_REASON]: Dates hurt nobody.",
        "[explanation]: Dates.\n[harmful]: NO\n[harmful_reason]: Dates hurt nobody.",
        "Let me look.\n\nSo:\n\n[EXPLANATION]: Dates.\n\n[HARMFUL]: No.\n\n"
        "[HARMFUL_REASON]: Dates hurt nobody.\n\nAsk me for more!",
        "[HARMFUL]: no\n[HARMFUL_REASON]: Dates hurt nobody.\n[EXPLANATION]: Dates.\n\nThat is it.",
        "So [EXPLANATION]: Dates. [HARMFUL]: no [HARMFUL_REASON]: Dates hurt nobody.",
        "**[Explanation]:** Dates.\n**[Harmful]:** No\n**[Harmful_Reason]:** Dates hurt nobody.",
        "**[EXPLANATION]**: Dates.\n**[HARMFUL]**: *no*\n**[HARMFUL_REASON]**: Dates hurt nobody.",
        "**[EXPLANATION]: Dates.**\n**[HARMFUL]: no**\n**[HARMFUL_REASON]: Dates hurt nobody.**",
        "## EXPLANATION\nDates.\n\n## HARMFUL\nNo\n\n## HARMFUL REASON\nDates hurt nobody.",
        "### [EXPLANATION]\n\nDates.\n\n### [HARMFUL]\n\nno\n\n### [HARMFUL_REASON]\n\n"
        "Dates hurt nobody.\n\n---\nI hope that this helps.",
        "Explanation: Dates.\nHarmful: false\nHarmful reason: Dates hurt nobody.",
        "1. **Explanation:** Dates.\n2. **Harmful:** No\n3. **Harmful-Reason:** Dates hurt nobody.",
        "- `[EXPLANATION]`: Dates.\n- `[HARMFUL]`: `no`\n- `[HARMFUL_REASON]`: Dates hurt nobody.",
        "[EXPLANATION]: Dates.\n[HARMFUL]: no\n[HARMFUL\\_REASON]: Dates hurt nobody.",
        "```\n[EXPLANATION]: Dates.\n[HARMFUL]: no\n[HARMFUL_REASON]: Dates hurt nobody.\n```",
        "> [EXPLANATION]: Dates.\r\n> [HARMFUL]: no\r\n> [HARMFUL_REASON]: Dates hurt nobody.\r\n",
        "<think>[EXPLANATION]: Cats. [HARMFUL]: yes?</think>[EXPLANATION]: Dates.\n[HARMFUL]: no\n"
        "[HARMFUL_REASON]: Dates hurt nobody.",
        "[EXPLANATION]: Cats. [HARMFUL]: yes</think>\n[EXPLANATION]: Dates.\n[HARMFUL]: no\n"
        "[HARMFUL_REASON]: Dates hurt nobody.",
        "[EXPLANATION]: Cats?\nNo.\n[EXPLANATION]: Dates.\n[HARMFUL]: no\n[HARMFUL]: No.\n"
        "[HARMFUL_REASON]: Dates hurt nobody.",
        "[EXPLANATION]: Dates.\n## Harmful\n[HARMFUL]: no\n[HARMFUL_REASON]: Dates hurt nobody.",
    ],
)
def test_the_ways_in_which_models_write_three_sections(text):
    assert read(text) == ("Dates.", False, "Dates hurt nobody.")


def test_a_text_written_as_asked_comes_before_a_later_one_that_is_not():
    text = "[EXPLANATION]: Dates.\n[HARMFUL]: no\n[HARMFUL_REASON]: Safe.\nExplanation: as above."
    assert read(text)[0] == "Dates."
    assert read("Explanation: a draft.\nExplanation: Dates.\n")[0] == "Dates."


def test_text_over_several_lines_is_kept_whole_before_another_section():
    text = "[EXPLANATION]: Either\n\n- dates or\n- times\n\n[HARMFUL]: no"
    assert read(text)[0] == "Either\n\n- dates or\n- times"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (None, None, None)),
        ("   \n\n", (None, None, None)),
        ("I cannot help with that.", (None, None, None)),
        ("[EXPLANATION]: Dates.", ("Dates.", None, None)),
        ("[EXPLANATION]:\n[HARMFUL]: yes\n[HARMFUL_REASON]:", (None, True, None)),
        ("[HARMFUL]: yes", (None, True, None)),
        ("[EXPLANATION]: Dates.\n[HARMFUL]: yes\n[HARMFUL]: no", ("Dates.", None, None)),
        ("Harmful: yes\n[EXPLANATION]: Dates.\n[HARMFUL]: no", ("Dates.", None, None)),
        ("[EXPLANATION]: Dates.\n[HARMFUL]: no\n[HARMFUL]: unclear", ("Dates.", None, None)),
        ("<think>[EXPLANATION]: Dates.\n[HARMFUL]: no", (None, None, None)),
        ("Harmful content: yes. Explanation of it below.", (None, None, None)),
        ("It is [HARMFUL] in my view, yes", (None, None, None)),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_not_read(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    "text", ["yes", "Yes.", "YES!", "true", "**Yes**", "[yes]", '"Yes"', "(yes)"]
)
def test_yes(text):
    assert read_yes_no(text) == (True, "")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("no", ""),
        ("No.", ""),
        ("false", ""),
        ("Not harmful.", ""),
        ("no - because dates are safe", "because dates are safe"),
        ("no because dates are safe", "because dates are safe"),
        ("No \u2014 dates are safe", "dates are safe"),
        ("No. No concerns at all.", "No concerns at all."),
        ("NO (dates are safe)", "(dates are safe)"),
        ("No\n\nDates are safe, true.", "Dates are safe, true."),
    ],
)
def test_no_and_the_words_after_it(text, rest):
    assert read_yes_no(text) == (False, rest)


HEDGED = (
    "maybe|yes/no|yes or no|Yes, no|no and yes|no\nyes|n/a|none|no idea|not sure|yesterday|nope"
)
HEDGED += "|not harmful to most|yes, maybe|no; unclear|yes?|nothing|0|unknown|I would say yes"
HEDGED += "|harmful if used so|Yes. False."


@pytest.mark.parametrize("text", ["", "YES|NO", *HEDGED.split("|")])
def test_a_verdict_that_hedges_or_goes_on_otherwise_is_not_read(text):
    assert read_yes_no(text) == (None, "")


def test_other_labels_and_judges():
    sections = find_sections("[SCORE]: 4\n[WHY]: close", ("SCORE", "WHY"))
    assert [(s.label, s.text, s.exact) for s in sections] == [
        ("SCORE", "4", True),
        ("WHY", "close", True),
    ]


STYLES = ["[{}]: {}", "**[{}]:** {}", "**{}**: {}", "### {}\n{}", "- {}: {}", "[{}]\n{}", "{} = {}"]
PROSE = st.text(alphabet="abcdefg ,'é漢", min_size=1).map(str.strip).filter(bool)
WORDS = {True: ["yes", "Yes.", "TRUE", "**yes**"], False: ["no", "No.", "False", "*NO*"]}


@settings(deadline=None)
@given(
    prose=st.fixed_dictionaries({"EXPLANATION": PROSE, "HARMFUL_REASON": PROSE}),
    harmful=st.booleans(),
    word=st.integers(0, 3),
    style=st.sampled_from(STYLES),
    order=st.permutations(LABELS),
    case=st.sampled_from([str.upper, str.lower, str.title]),
    gap=st.sampled_from(["\n", "\n\n", "\r\n"]),
    around=st.tuples(PROSE, PROSE),
)
def test_what_was_written_is_read_back(prose, harmful, word, style, order, case, gap, around):
    values = {**prose, "HARMFUL": WORDS[harmful][word]}
    parts = [style.format(case(label), values[label]) for label in order]
    text = gap.join([around[0], *parts]) + "\n\n" + around[1]
    assert read(text) == (prose["EXPLANATION"], harmful, prose["HARMFUL_REASON"])


PIECES = st.sampled_from([*"[]:*#-_`漢 \n", "<think>", "</think>", "yes", "no", "maybe", *LABELS])


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES | st.text(), max_size=60).map("".join))
def test_any_text_is_read_without_an_error_and_only_with_a_verdict_in_it(text):
    explanation, harmful, reason = read(text)
    assert explanation is None or explanation.strip()
    assert reason is None or reason.strip()
    lowered = text.lower().replace("harmful", "", 1)  # the label itself
    if harmful is not None:
        words = ("yes", "true", "harmful") if harmful else ("no", "false", "not harmful")
        assert any(word in lowered for word in words)
