"""The explorer as its user has it: in a browser, from a server on the loopback."""

import re
import socket
from concurrent.futures import Future

import pytest

from delphi_adapters.explorer.explorer import (
    Active,
    Explorer,
    ReadPair,
    SteeredText,
)
from delphi_adapters.explorer.views import pairs_html, steered_html
from sparsify_crosscoder.runs.run import Run
from tests.delphi_adapters.report.conftest import browser  # noqa: F401
from tests.support.report import HARMFUL
from tests.support.tokenizers import SENTENCES


@pytest.fixture(scope="module")
def page(run, browser):  # noqa: F811
    """The page in a tab, over a tiny run."""
    pytest.importorskip("gradio", reason="gradio is not installed: the extra `serve`")
    from delphi_adapters.explorer.page import build_page

    loading: Future = Future()
    loading.set_result(Explorer(Run.open(run), pairs=4000, device="cpu"))
    blocks = build_page(loading, "A tiny run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _, address, _ = blocks.launch(
        server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True
    )
    tab = browser.new_page()
    tab.set_default_timeout(60_000)
    tab.goto(address)
    yield tab
    tab.close()
    blocks.close(verbose=False)


def test_a_sentence_a_latent_and_the_slider_lead_to_two_texts(page):
    page.wait_for_selector("#status p:has-text('exclusive')")
    page.locator("#sentence textarea").fill(SENTENCES[0])
    page.locator("#read").click()
    page.wait_for_selector("#pairs table")
    heads = page.locator("#pairs th").all_inner_texts()
    assert heads[0].startswith("A ") and heads[1].startswith("B ")
    assert page.locator("#pairs tr").count() > 5
    button = page.locator("#pairs button[data-latent]").first
    latent = button.get_attribute("data-latent")
    button.click()
    page.wait_for_selector(f"#about h2:has-text('Latent {latent}')")
    assert "partition" in page.locator("#about").inner_text()
    assert page.locator("#about .contexts p").count() >= 1
    page.locator("#prompt textarea").fill("The sea")
    slider = page.locator("#strength input[type=number]")
    slider.fill("8")
    slider.press("Tab")
    page.wait_for_selector("#texts table")
    rows = page.locator("#texts tr").all_inner_texts()
    assert len(rows) == 3 and rows[1].startswith("A ") and rows[2].startswith("B ")


def test_what_is_wrong_is_said_on_the_page(page):
    page.locator("#latent input").fill("999")
    page.locator("#show").click()
    page.wait_for_selector("text=There are latents 0..63, not 999")


def test_texts_of_models_are_no_html():
    pairs = [ReadPair([HARMFUL, HARMFUL], [Active(3, "<b>", 1.0)])]
    for html in (
        pairs_html(pairs, HARMFUL[:2]),
        steered_html([SteeredText(text, text, text) for text in HARMFUL]),
        steered_html([SteeredText("A", "", "", text) for text in HARMFUL]),
    ):
        assert not re.search(r"<(script|img|svg|iframe|style|b)\b", html)


def test_texts_of_models_run_nothing_in_the_page(page):
    page.evaluate("window.ran = 0")
    page.locator("#sentence textarea").fill(
        f"{SENTENCES[0]} {' '.join(HARMFUL[:5])} ${{window.ran=1}}"
    )
    before = page.locator("#pairs tr").count()
    page.locator("#read").click()
    page.wait_for_function(f"document.querySelectorAll('#pairs tr').length > {before}")
    assert page.evaluate("window.ran") == 0
