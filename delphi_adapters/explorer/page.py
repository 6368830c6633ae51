"""The explorer's page: what is typed and clicked, and where the answers stand.

It asks an `Explorer`, which may still be loading when the page is opened.
"""

from __future__ import annotations

from concurrent.futures import Future
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from .views import STYLE, latent_html, pairs_html, status_html, steered_html, strength_label

if TYPE_CHECKING:
    from .explorer import Explorer

MOST_STRENGTH = 10.0
_CLICK = """element.addEventListener('click', event => {
  const button = event.target.closest('button[data-latent]');
  if (button) trigger('click', {latent: Number(button.dataset.latent)});
});"""


def build_page(loading: Future[Explorer], title: str) -> Any:
    """The page as gradio's Blocks."""

    def explorer() -> Explorer:
        return loading.result()

    def asked(ask: Any) -> Any:
        try:
            return ask(explorer())
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def read(sentence: str) -> str:
        return asked(lambda one: pairs_html(one.read(sentence), one.labels))

    def show(latent: float | None) -> tuple[str, Any]:
        if latent is None:
            raise gr.Error("Click a latent, or type its number.", print_exception=False)
        view = asked(lambda one: one.latent(int(latent)))
        most = view.coherent or MOST_STRENGTH
        slider = gr.Slider(maximum=most, label=strength_label(view))
        return latent_html(view, explorer().labels), slider

    def picked(event: gr.EventData) -> int:
        return int(event.latent)

    def steer(latent: float | None, strength: float, prompt: str) -> str:
        if latent is None:
            raise gr.Error("Click a latent, or type its number.", print_exception=False)
        return asked(lambda one: steered_html(one.steer(int(latent), strength, prompt)))

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<style>{STYLE}</style><h1>{escape(title)}</h1>")
        status = gr.HTML("<p>The models are loading ...</p>", elem_id="status")
        sentence = gr.Textbox(label="A sentence, which both models read", elem_id="sentence")
        reads = gr.Button("Read", variant="primary", elem_id="read")
        pairs = gr.HTML(js_on_load=_CLICK, elem_id="pairs")
        with gr.Row():
            latent = gr.Number(label="Latent", precision=0, value=None, elem_id="latent")
            shows = gr.Button("Show", elem_id="show")
        about = gr.HTML(elem_id="about")
        prompt = gr.Textbox("Tell me something", label="What the models continue", elem_id="prompt")
        slider = gr.Slider(0, MOST_STRENGTH, 0, step=0.1, label="Strength", elem_id="strength")
        texts = gr.HTML(elem_id="texts")

        page.load(lambda: status_html(explorer()), None, status)
        gr.on([reads.click, sentence.submit], read, sentence, pairs)
        pairs.click(picked, None, latent).then(show, latent, [about, slider])
        gr.on([shows.click, latent.submit], show, latent, [about, slider])
        slider.change(steer, [latent, slider, prompt], texts, trigger_mode="always_last")
        prompt.submit(steer, [latent, slider, prompt], texts)
    return page
