"""The page as a reader has it: in a browser, from a file, without a network."""

import importlib
import re
from pathlib import Path

import pytest

from delphi_adapters.report import write_report
from tests.support.report import (
    HARMFUL,
    LONG,
    SURROGATE,
    difference,
    hostile_report,
    listed_report,
    planted_recall,
    small_report,
    unjudged_report,
)

ROOT = Path(__file__).parents[3]
made_up_report = importlib.import_module("report_data").made_up_report

LATENTS = 10_000


class Opened:
    """A report in a tab of its own, with all that happened there."""

    def __init__(self, browser, file, scheme="light", width=1280, height=900):
        self.address = file.as_uri()
        self.requests, self.troubles = [], []
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": height}
        )
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self._dialog(dialog))

    def _dialog(self, dialog):
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def go(self, view):
        """Open a view as one who was given its address does."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}#/{view}")
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def numbers(self):
        """Latents in the rows that are drawn."""
        return [int(text) for text in self.page.locator("td.c-latent").all_inner_texts()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    reports = {"small": small_report(), "hostile": hostile_report(), "unjudged": unjudged_report()}
    sure = {"q_value": 0.04, "q_interval": [0.01, 0.2]}
    rows = [difference(1, 0, 0, **sure), difference(2, 3, 1)]
    reports["listed"] = listed_report(rows, power=planted_recall(3, 8))
    for name, data in reports.items():
        write_report(data, folder / name)
    empty = {name: {} for name in ("summary", "judge", "filter", "stitching", "categories")}
    empty |= {name: [] for name in ("nulls", "null_scores", "similar", "detailed", "warnings")}
    data = small_report(**empty, stability=None, provenance={})
    write_report(data, folder / "bare")
    write_report(made_up_report(LATENTS, detailed=300), folder / "large")
    return folder


@pytest.fixture
def open_report(browser, folder):
    """Opens a report by name; at the end nothing untoward may have happened in it."""
    opened = []

    def opener(name="small", **settings):
        opened.append(Opened(browser, folder / name / "report.html", **settings))
        return opened[-1]

    yield opener
    for one in opened:
        assert one.troubles == []
        assert {url.partition("#")[0] for url in one.requests} <= {one.address, "about:blank"}
        one.context.close()


def test_the_overview_says_what_was_compared_and_how_well(open_report):
    page = open_report().go("overview")
    assert page.locator("h1").inner_text() == "Alpha and Beta"
    text = page.locator("main").inner_text()
    for expected in ("models/alpha", "layers.2", "0.780", "33.3%", "The budget ended early."):
        assert expected in text
    for title in ("Null rates", "Stitching", "Stability", "Explained alike", "Where it comes from"):
        assert page.locator("h2", has_text=title).count() == 1
    bars = page.locator("svg.plot rect")
    assert sorted(bars.locator("title").all_text_contents()) == [
        "exclusive_0: 2 from 0.975",
        "exclusive_1: 1 from 0.000",
        "shared: 1 from 0.450",
        "shared: 1 from 0.500",
    ]
    assert "1 dead latents are left out" in text


def test_every_statement_of_trust_has_its_level(open_report):
    page = open_report().go("trust")
    cards = page.locator(".card")
    levels = [text.split()[-1] for text in cards.locator(".badge").all_inner_texts()]
    assert levels == sorted(levels, key=["bad", "caution", "good"].index)
    assert set(levels) == {"bad", "caution", "good"}
    tally = open_report().go("overview").locator(".strip").inner_text()
    assert all(f"{levels.count(level)}" in tally for level in ("bad", "caution", "good"))


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(open_report):
    report = open_report()
    page = report.go("features")
    assert report.numbers() == [0, 1, 3, 2, 4, 5]  # by exclusivity, then by the filter's score
    page.locator("th[data-column=firings] button").click()
    assert report.numbers() == [5, 4, 3, 1, 0, 2]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.locator("th[data-column=firings] button").click()
    assert report.numbers() == [2, 0, 1, 3, 4, 5]
    page.locator("th[data-column=explanation] button").click()
    assert report.numbers()[:3] == [1, 3, 0]
    assert page.locator("th[data-column=explanation] button").get_attribute("title")


def test_latents_without_a_value_come_last_in_either_order(open_report):
    report = open_report()
    page = report.go("features?sort=detection_score&dir=desc")
    assert report.numbers()[:3] == [0, 3, 1]
    page.locator("th[data-column=detection_score] button").click()
    assert report.numbers()[:3] == [1, 3, 0]
    assert set(report.numbers()[3:]) == {2, 4, 5}


@pytest.mark.parametrize(
    "query, found",
    [
        ("winter", [1]),
        ("SHIPS CARRY", [0]),  # in the reason
        ("surveillance", [0]),
        ("4", [4]),
        ("#5", [5]),
        ("nothing has this", []),
    ],
)
def test_search_finds_words_and_numbers(open_report, query, found):
    report = open_report()
    page = report.go("features")
    page.get_by_label("Search").fill(query)
    assert report.numbers() == found
    assert page.locator("[role=status]").inner_text() == f"{len(found)} of 6 latents"


def test_filters_leave_what_they_name(open_report):
    report = open_report()
    page = report.go("features")
    page.get_by_label("kept by the filter").check()
    assert report.numbers() == [0, 3]
    page.get_by_label("flagged").check()
    assert report.numbers() == [0]
    page.get_by_label("flagged").uncheck()
    page.get_by_label("kept by the filter").uncheck()
    page.get_by_label("interpretable").check()
    assert report.numbers() == [0, 3]
    page.get_by_label("interpretable").uncheck()
    page.get_by_label("Which").select_option("m:shared")
    assert report.numbers() == [4, 5]
    page.get_by_label("Which").select_option("p:exclusive_1")
    assert report.numbers() == [3]
    page.get_by_label("Which").select_option("")
    page.get_by_label("not dead").check()
    assert 2 not in report.numbers() and len(report.numbers()) == 5


def test_the_address_holds_search_filter_and_order(open_report):
    report = open_report()
    page = report.go("features")
    page.get_by_label("kept by the filter").check()
    page.locator("th[data-column=firings] button").click()
    address = page.url
    again = open_report()
    again.go(address.partition("#/")[2])
    assert again.numbers() == report.numbers() == [3, 0]
    assert again.page.get_by_label("kept by the filter").is_checked()


def test_all_columns_can_be_shown_and_sorted_by(open_report):
    report = open_report()
    page = report.go("features")
    page.get_by_role("button", name="All columns").click()
    page.locator("th[data-column=unanswered] button").click()
    assert report.numbers()[0] == 1
    assert page.locator("th").count() > 20


def test_a_latent_opens_and_back_leads_to_the_list_as_it_was(open_report):
    report = open_report()
    page = report.go("features")
    page.get_by_label("kept by the filter").check()
    page.get_by_role("link", name="3", exact=True).click()
    page.wait_for_selector("h1:has-text('Latent 3')")
    assert page.url.endswith("#/feature/3")
    page.get_by_role("link", name="Previous").click()
    page.wait_for_selector("h1:has-text('Latent 0')")
    page.go_back()
    page.go_back()
    page.wait_for_selector("h1:has-text('Latents')")
    assert report.numbers() == [0, 3]


def test_the_page_of_a_latent_has_every_result_beside_its_null(open_report):
    page = open_report().go("feature/0")
    text = page.locator("main").inner_text()
    for expected in (
        "The sea, and ships on it.",
        "It hides what ships carry.",
        "Only one of them speaks of ships.",
        "alpha against itself: exclusive latents kept: 1 of 200",
    ):
        assert expected in text
    rows = [
        row.inner_text().split("\t") for row in page.locator("section:has-text('beside') tr").all()
    ]
    results = {row[0]: row[1:] for row in rows}
    assert results["Exclusivity, 1 to 5"] == [
        "4.50",
        "2.00 (1.50 to 2.50); 0 of 2 as high",
        "3.00 (3.00 to 3.00); 0 of 1 as high",
    ]
    assert results["Clarity of its effect, 1 to 5"][1] == "3.00 (2.00 to 3.50); 0 of 3 as high"
    assert results["Detection score"] == ["0.90", "0.50 by chance", "0.50 by chance"]


def test_tokens_of_both_models_are_marked_by_activation(open_report):
    page = open_report().go("feature/0")
    first = page.locator(".contexts li").first
    sides = first.locator(".tokens")
    assert sides.count() == 2
    assert [t.inner_text() for t in sides.nth(0).locator(".heat").all()] == [" ship", " sails"]
    assert "h8" in sides.nth(1).locator(".heat").first.get_attribute("class")
    assert sides.nth(1).locator(".heat").first.get_attribute("title") == "activation 9.00"
    assert page.locator(".contexts li").count() == 4
    page.get_by_role("button", name="Show 2 more").click()
    assert page.locator(".contexts li").count() == 6


def test_the_slider_steps_through_strengths_of_both_models(open_report):
    page = open_report().go("feature/0")
    answers = page.locator(".answer")
    assert answers.all_inner_texts() == [f"model {m}, prompt 0, strength 8.0" for m in (0, 1)]
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("ArrowLeft")
    assert answers.all_inner_texts() == [f"model {m}, prompt 0, strength 2.0" for m in (0, 1)]
    page.get_by_role("button", name="Weaker").click()
    assert page.locator("output").inner_text() == "strength 0 (not steered)"
    page.get_by_role("button", name="Weaker").click()  # there is nothing below
    page.locator("main select").select_option(label="Tell me of the sea.")
    assert answers.all_inner_texts() == [f"model {m}, prompt 1, strength 0.0" for m in (0, 1)]


def test_dose_and_response_is_drawn_with_its_interval_and_its_values(open_report):
    page = open_report().go("feature/0")
    plot = page.locator("svg.plot")
    assert plot.locator("polyline").count() == 2
    assert plot.locator("polygon").count() == 1  # only one has an interval
    page.get_by_text("Values", exact=True).click()
    assert page.locator("figure table tbody tr").first.inner_text().split("\t") == [
        "alpha",
        "0",
        "1.00",
        "0.50 to 1.50",
    ]


def test_a_latent_without_details_and_one_that_does_not_exist(open_report):
    report = open_report()
    assert "No texts and answers were kept" in report.go("feature/4").locator("main").inner_text()
    assert "no such latent" in report.go("feature/77").locator("main").inner_text()
    assert "no such latent" in report.go("feature/x").locator("main").inner_text()


@pytest.mark.parametrize("view", ["overview", "features", "feature/0", "trust"])
def test_a_report_of_a_run_that_nobody_looked_into_opens(open_report, view):
    page = open_report("bare").go(view)
    assert page.locator("h1").is_visible()
    assert "undefined" not in page.locator("main").inner_text()


def test_the_list_is_reached_and_sorted_by_keys_alone(open_report):
    report = open_report()
    page = report.go("features")
    page.locator("th[data-column=firings] button").focus()
    page.keyboard.press("Enter")
    assert report.numbers() == [5, 4, 3, 1, 0, 2]
    page.get_by_role("link", name="5", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Latent 5')")
    assert page.evaluate("document.activeElement.tagName") == "H1"


@pytest.mark.parametrize("width", [400, 800, 1600])
@pytest.mark.parametrize("view", ["overview", "features", "feature/0", "trust"])
def test_no_view_is_wider_than_the_window(open_report, view, width):
    page = open_report(width=width).go(view)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_light_and_dark_differ_in_their_ground(open_report):
    grounds = {
        open_report(scheme=scheme)
        .go("overview")
        .evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert len(grounds) == 2


@pytest.mark.parametrize(
    "view", ["overview", "features", "features?columns=all", "feature/0", "trust"]
)
def test_texts_that_mean_harm_are_only_text(open_report, view):
    page = open_report("hostile").go(view)
    for button in page.get_by_role("button", name="more characters").all():
        assert button.is_visible()
    assert page.evaluate("window.ran") is None
    elements = page.evaluate("[...document.body.querySelectorAll('*')].map((e) => e.tagName)")
    assert not {"IMG", "IFRAME", "OBJECT", "B2", "FORM2"} & set(elements)
    assert page.locator("body style, main script, svg[onload]").count() == 0
    executable = "script:not([type])"
    assert page.locator(executable).count() == 1
    text = page.evaluate("document.querySelector('main').textContent")
    assert HARMFUL[0] in text
    assert "\u202e" not in text and "\u2066" not in text and "\x00" not in text
    assert "\u27e8U+202E\u27e9" in text and "\u27e8U+0000\u27e9" in text
    assert all(href.startswith("#") for href in _links(page))


def test_a_token_of_a_million_characters_is_cut_with_a_note(open_report):
    page = open_report("hostile").go("feature/0")
    text = page.locator(".contexts").inner_text()
    assert f"[{len(LONG) - 200:,} more characters]" in text
    assert len(text) < 50_000
    assert SURROGATE.split()[0] in text and "\u27e8U+D83D\u27e9" in text


def test_only_the_rows_in_sight_of_ten_thousand_are_drawn(open_report):
    report = open_report("large")
    page = report.go("features?sort=latent")
    assert page.locator("[role=status]").inner_text() == "10,000 of 10,000 latents"
    assert report.numbers()[:3] == [0, 1, 2]
    assert page.locator("tbody tr").count() < 80
    page.evaluate("document.querySelector('.scroll').scrollTop = 5000 * 36")
    page.wait_for_selector("td.c-latent a:text-is('5000')")
    assert page.locator("tbody tr").count() < 80
    page.locator("th[data-column=latent] button").click()
    assert report.numbers()[:2] == [9999, 9998]
    page.get_by_label("Search").fill("4321")
    assert 4321 in report.numbers()


def test_the_last_details_of_many_are_found(open_report, folder):
    data = made_up_report(LATENTS, detailed=300)
    last = data.detailed[-1]
    page = open_report("large").go(f"feature/{last}")
    assert page.locator(".contexts li").count() == 4
    assert data.details(last).judgements[0].reason in page.locator("main").inner_text()


def test_printing_shows_whole_rows_without_controls(open_report):
    page = open_report("large").go("features?sort=latent")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("tbody tr").count() == 200
    assert "the first 200 are printed" in page.locator("[role=status]").inner_text()
    assert not page.locator(".controls").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("tbody tr").count() < 80


def _links(page):
    return page.evaluate("[...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))")


def test_without_a_judge_words_and_tokens_stand_where_explanations_did(open_report):
    report = open_report("unjudged")
    page = report.go("features")
    assert report.numbers()[:3] == [0, 3, 1]  # by the filter's score, then by likeness
    heads = page.locator("th").all_inner_texts()
    assert "words around" in heads and "likeness" in heads
    assert not {"explanation", "flag", "exclusivity"} & set(heads)
    page.get_by_label("Search").fill("harbour")
    assert report.numbers() == [0]
    page.get_by_label("Search").fill("")
    page.get_by_label("compared in both models").check()
    assert report.numbers() == [0, 1]
    assert page.get_by_label("flagged").count() == 0
    text = report.go("feature/0").locator("main").inner_text()
    for expected in (
        "harbour (9 of 10)",
        "ship (7 of 10)",
        "\u201c sea\u201d",
        "Promotes in alpha",
    ):
        assert expected in text
    assert "Explanation" not in text and "Detection score" not in text
    rows = [
        row.inner_text().split("\t")
        for row in report.page.locator("section:has-text('beside') tr").all()
    ]
    assert ["Likeness of effects, -1 to 1", "0.10", "0.65 (0.50 to 0.80); 0 of 2 as low"] in [
        row[:3] for row in rows
    ]


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("view", ["overview", "features", "feature/0", "trust"])
def test_without_a_judge_no_view_is_wider_than_the_window(open_report, view, width):
    page = open_report("unjudged", width=width).go(view)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    text = page.locator("main").inner_text()
    assert "undefined" not in text and "NaN" not in text


VIEWS = ("overview", "features", "features?columns=all", "feature/0", "feature/77", "trust")


@pytest.mark.parametrize("name", ["small", "unjudged", "listed", "hostile", "bare"])
def test_no_view_is_wider_than_a_telephone(open_report, name):
    report = open_report(name, width=360, height=740)
    for view in VIEWS:
        page = report.go(view)
        widths = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1] == 360, view


def test_a_wide_table_scrolls_in_its_own_box(open_report):
    page = open_report("listed", width=360, height=740).go("overview")
    boxes = page.locator(".wide").evaluate_all(
        "(all) => all.map((e) => e.scrollWidth > e.clientWidth)"
    )
    assert any(boxes)


def test_the_first_screen_says_what_was_found_and_what_was_not(open_report):
    page = open_report("listed").go("overview")
    paragraphs = page.locator(".answer-first p")
    assert paragraphs.first.inner_text().startswith("2 differences between alpha and beta")
    last = paragraphs.last
    assert last.inner_text().startswith("What was not found.")
    box = last.bounding_box()
    assert box["y"] + box["height"] <= 900


# Contrast by WCAG 2: of every text against what lies below it, grounds that let through composed.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (c) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = c.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = (node) => {
    const all = [];
    for (let e = node; e; e = e.parentElement) {
      all.unshift(rgba(getComputedStyle(e).backgroundColor));
    }
    return all.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = [];
  for (const e of document.body.querySelectorAll("*")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest("title")) continue;
    const style = getComputedStyle(e);
    const below = ground(e);
    const ink = rgba(e instanceof SVGElement ? style.fill : style.color);
    ink[3] *= Number(style.opacity);
    const name = `${e.tagName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 40)}`;
    found.push([ratio(over(ink, below), below), name]);
  }
  return found;
}"""

MARKS = """() => {
  const marks = [...document.querySelectorAll(".plot rect, .plot polyline, .plot circle, .key")];
  return marks.map((e) => {
    const style = getComputedStyle(e);
    return e.classList.contains("key") ? style.backgroundColor : style.stroke;
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["small", "listed"])
def test_every_text_stands_out_from_its_ground_in_both_schemes(open_report, scheme, name):
    report = open_report(name, scheme=scheme)
    for view in ("overview", "features", "feature/0", "feature/1", "trust"):
        found = report.go(view).evaluate(CONTRASTS)
        assert len(found) > 20
        assert [one for one in found if one[0] < 4.5] == [], view


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["overview", "feature/0"])
def test_the_marks_of_charts_stand_out_from_the_page(open_report, scheme, view):
    page = open_report(scheme=scheme).go(view)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    marks = set(page.evaluate(MARKS))
    assert len(marks) >= 2
    assert {mark: _contrast(mark, ground) for mark in marks if _contrast(mark, ground) < 3} == {}


def _contrast(first, second):
    light = sorted((_luminance(first), _luminance(second)))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(colour):
    parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
