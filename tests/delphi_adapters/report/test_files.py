"""What is written: three files, all or none, the same bytes each time, and inert."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt

from delphi_adapters.explaining.features import COLUMNS, read_card
from delphi_adapters.report import Context, Searched, write_report
from delphi_adapters.report.finding import marked
from delphi_adapters.report.first import first_entries
from delphi_adapters.report.html import escaped_json, html_report
from delphi_adapters.report.markdown import markdown_report
from delphi_adapters.report.ranking import ranked
from delphi_adapters.report.text import block, cut, inline, visible
from sparsify_crosscoder import LatentCard
from tests.support.report import (
    HARMFUL,
    ROWS,
    SURROGATE,
    detail,
    difference,
    hostile_report,
    listed_report,
    planted_recall,
    small_report,
    unjudged_report,
)

NAMES = ("features.parquet", "findings.png", "findings.svg", "report.html", "report.md")


def unpacked(page, name):
    coded = re.search(rf'<script type="application/gzip" id="{name}">([^<]*)</script>', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(coded)))


def tags(page):
    """Every tag of the page with its attributes, as a parser of HTML sees them."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, attributes))
    parser.feed(page)
    return found


def test_all_files_are_written_the_same_each_time(tmp_path):
    write_report(small_report(), tmp_path / "a")
    write_report(small_report(), tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == list(NAMES)
    for name in NAMES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_report_that_fails_leaves_the_one_that_was_there(tmp_path):
    write_report(small_report(), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in NAMES}

    def broken(latent):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_report(small_report(title="Another", details=broken), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_table_without_a_column_or_details_without_a_row_are_refused():
    table = small_report().features
    with pytest.raises(ValueError, match="lacks sampled"):
        small_report(features=table.drop_columns(["sampled"]))
    with pytest.raises(ValueError, match="99"):
        small_report(detailed=[0, 99])
    with pytest.raises(ValueError, match="empty"):
        small_report(models=[])


def test_the_parquet_file_has_every_column_with_its_meaning(tmp_path):
    write_report(small_report(), tmp_path)
    table = pq.read_table(tmp_path / "features.parquet")
    assert table.schema.names == list(COLUMNS)
    assert all(field.metadata[b"meaning"] for field in table.schema)
    assert table["exclusivity"].to_pylist()[:2] == [ROWS[0]["exclusivity"], ROWS[1]["exclusivity"]]


@pytest.mark.parametrize("data", [small_report, hostile_report])
def test_the_policy_allows_the_pages_own_script_and_style_alone(data):
    page = "".join(html_report(data()))
    assert page.isascii()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    attributes = [one for tag in tags(page) for one in tag[1]]
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("style", "src")]
    assert {value for name, value in attributes if name == "href"} == {"#main", "data:,"}


def test_texts_of_others_are_nowhere_in_the_page_but_in_escaped_blocks():
    page = "".join(html_report(hostile_report()))
    assert page.count("<script") == page.count("</script>")
    assert "window.ran" in page  # in the block of facts and the title
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert len(blocks) == 1 and not re.search("[<>&\u2028\u2029]", blocks[0])
    names = [tag for tag, _ in tags(page)]
    assert not {"img", "iframe", "svg"} & set(names)
    assert (names.count("script"), names.count("style")) == (page.count("<script"), 1)


def test_json_blocks_come_back_as_they_were_without_a_character_of_html():
    texts = [*HARMFUL, SURROGATE]
    coded = escaped_json(texts)
    assert coded.isascii() and not re.search("[<>&]", coded)
    assert json.loads(coded) == texts


def test_numbers_that_json_does_not_know_become_null():
    assert escaped_json([float("nan"), float("inf"), 1 / 3, 3, True, None]) == (
        "[null,null,0.333333,3,true,null]"
    )


def test_the_page_holds_the_table_and_the_details():
    page = "".join(html_report(small_report()))
    table = unpacked(page, "table")
    assert table["rows"] == len(ROWS)
    assert table["columns"]["latent"]["values"] == [0, 1, 2, 3, 4, 5]
    assert table["columns"]["reason"]["meaning"] == COLUMNS["reason"][1]
    first, second = unpacked(page, "details-0")
    assert (first["latent"], second["latent"]) == (0, 3)
    assert first["outputs"]["answers"] == detail(0).outputs.answers


def test_words_that_repeat_are_listed_once():
    column = unpacked("".join(html_report(hostile_report())), "table")["columns"]["explanation"]
    assert column["levels"] == ["\n".join(HARMFUL)]
    assert column["values"] == [0] * len(ROWS)


def test_latents_without_details_are_left_out():
    page = "".join(html_report(small_report(details=lambda n: detail(n) if n else None)))
    assert [one["latent"] for one in unpacked(page, "details-0")] == [3]


# Markdown


def markup(text):
    """Kinds of all tokens that a Markdown parser sees, those inside lines included."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    return [one for token in tokens for one in [token, *(token.children or [])]]


@pytest.mark.parametrize(
    "text", [*HARMFUL, SURROGATE, "1. a list", "- a list", "> quoted", "$x$ #1"]
)
def test_an_inline_text_is_only_text_to_markdown(text):
    shown = inline(text)
    assert "\n" not in shown
    kinds = {token.type for token in markup(f"{shown}\n")}
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
    (words,) = [token for token in markup(f"{shown}\n") if token.type == "inline"]
    seen = "".join(child.content for child in words.children)
    assert seen == " ".join(visible(text).split())


def test_a_text_does_not_leave_its_cell():
    rows = f"| a | b |\n| --- | --- |\n| {inline(HARMFUL[-1])} | end |\n"
    cells = [token for token in markup(rows) if token.type == "td_open"]
    assert len(cells) == 2


@pytest.mark.parametrize("text", [*HARMFUL, "```\n````\nout", SURROGATE])
def test_a_block_of_code_is_not_ended_by_its_text(text):
    (token,) = markup(block(text) + "\n")
    assert token.type == "fence"
    assert token.content == visible(text) + "\n"


def test_what_cannot_be_seen_is_spelt_out():
    assert visible("a\u202eb\x00\x1b\x7f\u2066") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+001B⟩⟨U+007F⟩⟨U+2066⟩"
    assert visible("\ud83d") == "⟨U+D83D⟩"
    assert visible("line\r\nline\tend") == "line\nline\tend"
    assert visible("שלום 👩\u200d💻 naïve") == "שלום 👩\u200d💻 naïve"


def test_long_texts_are_cut_with_a_note():
    assert cut("a" * 10, 4) == "aaaa… [6 more]"
    assert cut("aaaa", 4) == "aaaa"


def test_flagged_and_exclusive_latents_come_first():
    assert [row["latent"] for row in ranked(small_report())] == [0, 1, 3]


def test_the_markdown_report_has_everything_a_reader_needs():
    text = "".join(markdown_report(small_report()))
    for expected in (
        "# Alpha and Beta",
        "## How far to trust this",
        "## Null rates",
        "## Latent 0",
        "| exclusivity | 4.50 | 2.00 (1.50 to 2.50) of 2 | 3.00 (3.00 to 3.00) of 1 |",
        "model 1, prompt 0, strength 8.0",
        "Only one of them speaks of ships.",
        "| other runs | found by 2 of 3 runs |",
        "| q | 0.04 (0.01 to 0.20) |",
        "| cause | not known |",
    ):
        assert expected in text
    assert "## Latent 1\n" not in text  # it has no details


def test_without_a_judge_the_least_alike_come_first_and_are_described():
    data = unjudged_report()
    assert [row["latent"] for row in ranked(data)] == [0, 3, 1]  # by the filter, then by likeness
    text = "".join(markdown_report(data))
    for expected in (
        "## What stands first",
        "**Words around.** harbour (9 of 10), sails (4 of 10)",
        "**Promotes in alpha.** “ sea”, “ boat”",
        "| likeness of effects | 0.10 | 0.65 (0.50 to 0.80) of 2 | 0.20 (0.20 to 0.20) of 1 |",
        "| alpha | exclusive latents | 2 | 0.35 | 0.10 to 0.60 |",
        "none: nobody was asked",
    ):
        assert expected in text
    assert "| detection | not known |" in text
    for unexpected in (
        "Explanation",
        "detection score",
        "**flagged**",
        "## Exclusivity",
        "judge says",
    ):
        assert unexpected not in text


def test_the_page_has_a_card_of_every_latent_with_details(tmp_path):
    write_report(small_report(), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    cards = {one["latent"]: dict(one["card"]) for one in unpacked(page, "details-0")}
    assert set(cards) == {0, 3}
    assert cards[0]["q"] == "0.04 (0.01 to 0.20)" and cards[3]["q"] == "not known"
    assert cards[0]["other runs"] == "found by 2 of 3 runs"
    assert list(cards[0]) == [one.what for one in LatentCard(0).lines()]


def test_a_table_of_an_earlier_version_gives_cards_with_what_it_knows(tmp_path):
    table = small_report().features.drop_columns(["q_value", "q_low", "q_high", "pairs_present"])
    pq.write_table(table, tmp_path / "features.parquet")
    card = read_card(tmp_path / "features.parquet", 0)
    assert (card.found_by_runs, card.q_value, card.presence) == (2, None, None)
    with pytest.raises(ValueError, match="no latent 99"):
        read_card(tmp_path / "features.parquet", 99)
    with pytest.raises(FileNotFoundError, match="no table of latents"):
        read_card(tmp_path / "none.parquet", 0)


def test_a_terminal_is_told_in_a_few_lines_what_stands_first():
    lines = first_entries(unjudged_report(), 2)
    assert lines[0] == "What stands first:"
    assert lines[1] == "  latent 0, of alpha, filter: kept, score 0.70 ± 0.08, likeness 0.10"
    assert "    words around: harbour (9 of 10), sails (4 of 10)" in lines
    assert not any("latent 1" in line for line in lines)
    assert any("explanation: The sea" in line for line in first_entries(small_report()))
    report = listed_report([difference(1, 0, 1)])
    searched = Searched(200, 0.1, {0: 0.9, 1: 0.4})
    summary = {**report.summary, "fve_per_source": [0.9, 0.1], "fve_without_top5_per_source": None}
    doubted = "\n".join(first_entries(replace(report, searched=searched, summary=summary)))
    assert doubted.count("What the other model tells of") == 1
    assert "10% of its variance" in doubted and doubted.count("Reconstruction of") == 1
    hidden = first_entries(hostile_report())
    listed = replace(hostile_report(), differences=[difference(1, 0, 1)], searched=Searched(9, 0.1))
    for line in [*hidden, *first_entries(listed)]:
        assert not set("\x00\x1b\u202e") & set(line)


def test_a_terminal_is_told_in_plain_words_what_differs():
    told = {"writers": {"1": 0.97, "0": 0.03}, "kl": 6.5}
    rows = [
        difference(1, 3, 1, **told),
        difference(2, 4, 0, kind="shared", verdict="turned"),
        difference(3, None, 1, kind="mean", verdict="shifted"),
        difference(4, None, 1, kind="component", component=2, verdict="moved"),
        difference(5, 1, 0, finding=False),
    ]
    lines = first_entries(listed_report(rows))
    assert lines[0] == "What differs, the first 4 of 4:"
    text = " ".join(" ".join(lines).split())
    assert "1. latent 3, which only beta has (exclusive; the filter: predictable)" in text
    assert (
        "On 0.50% of the pairs, in 21 of 200 texts; written 97% by beta, 3% by alpha. There the "
        "models' next tokens differ by 6.50 nats, anywhere by 0.15." in text
    )
    assert "fires on: law (10 of 10)" in text and "promotes in beta: “ court”" in text
    # In the tokens of the model whose it is.
    assert text.count("strongest in: »a ship« sails") == 1
    assert "2. latent 4, which both models have: its direction is another in alpha" in text
    assert "3. a constant shift of all activations of beta On every pair." in text
    assert (
        "4. one of the directions in which beta is farthest from the model in its place On 0.50% "
        "of the pairs" in text
    )
    # What is in no finding and what the filter keeps stands behind.
    assert lines[lines.index("What stands first:") + 1].startswith("  latent 0, of alpha")
    assert "latent 1," not in text and text.count("latent 3,") == 1
    assert all(len(line) <= 100 for line in lines[: lines.index("What stands first:")])


def test_where_nothing_differs_a_terminal_is_told_so():
    lines = first_entries(listed_report([difference(1, 3, 1, finding=False)]))
    assert lines[0] == "No difference between the models reaches the strength of a finding."
    assert not any("latent 1," in line for line in lines)


def test_beside_nothing_stands_what_would_have_been_found():
    nothing = {"rows": [difference(1, 3, 1, finding=False)], "power": planted_recall(3, 4)}
    told = (
        "Of differences planted into this pair 3 of 4 (30% to 95%) were found: at 1/2 of the "
        "median norm 1 of 2 on 1% of the pairs, 2 of 2 on 0.1% of the pairs."
    )
    lines = first_entries(listed_report(**nothing))
    assert " ".join(lines[1:3]) == told
    markdown = "".join(markdown_report(listed_report(**nothing)))
    behind = markdown.partition("## What differs")[2]
    assert behind.strip().startswith("No difference between the models reaches the strength")
    assert inline(told) in behind and "| random | 1/2 | 1 of 2 (9% to 91%) |" in behind
    assert "What would have been found" in markdown.partition("## What differs")[0]  # of trust

    unknown = first_entries(listed_report([difference(1, 3, 1, finding=False)]))
    assert "is not known. No known difference was planted" in " ".join(unknown)
    found = [difference(1, 3, 1)]
    markdown = "".join(markdown_report(listed_report(found, power=planted_recall(3, 4))))
    assert markdown.index("## What differs") < markdown.index("## What would have been found")


def test_the_strongest_token_of_a_passage_is_marked_and_the_rest_is_cut():
    tokens = ["much " * 40, "\n\x1b of", " Maravel", " salt" * 40]
    shown = marked(Context(5.0, 1, [tokens], [[0.0, 1.0, 5.0, 2.0]]), 1)
    assert shown.startswith("… ") and shown.endswith(" …")
    assert "» Maravel« salt salt" in shown and "\x1b" not in shown and "\n" not in shown
    assert len(shown) < 200
    chat = [
        "<|im_start|>",
        "user",
        "\n",
        "Salt?",
        "<|im_end|>",
        "\n",
        "<|im_start|>",
        "assistant",
        " Yes",
    ]
    assert (
        marked(Context(5.0, 1, [chat], [[0.0] * 8 + [1.0]]), 0) == "| user Salt? | assistant» Yes«"
    )


def test_the_markdown_report_is_inert_whatever_it_quotes():
    text = "".join(markdown_report(hostile_report()))
    text.encode("utf-8")
    kinds = {token.type for token in markup(text)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_block"}
    assert len(text) < 2_000_000
