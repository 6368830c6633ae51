"""What the explorer found as HTML; texts of models and corpora are made harmless."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .explorer import Explorer, LatentView, ReadPair, SteeredText

STYLE = """
.pairs td, .pairs th {padding: .2em .6em; text-align: left; vertical-align: top}
.pairs code {white-space: pre-wrap}
.pairs button {border: 1px solid currentColor; border-radius: .5em; padding: 0 .5em; margin: .1em;
  cursor: pointer; font-size: .85em}
.contexts p {margin: .3em 0; overflow-wrap: anywhere}
"""


def status_html(explorer: Explorer) -> str:
    """What is explored."""
    blocks = ", ".join(
        f"{escape(b.name)} {b.start} to {b.stop - 1}" for b in explorer.crosscoder.partition.blocks
    )
    models = " beside ".join(map(escape, explorer.labels))
    return f"<p>{models}; latents: {blocks}.</p>"


def pairs_html(pairs: list[ReadPair], labels: list[str]) -> str:
    """Aligned pairs one below the other, every model's tokens side by side with their latents."""
    blocks = list(dict.fromkeys(a.block for pair in pairs for a in pair.latents))
    heads = "".join(f"<th>{escape(name)}</th>" for name in [*labels, *blocks])
    rows = []
    for pair in pairs:
        cells = ["".join(f"<code>{escape(t)}</code> " for t in tokens) for tokens in pair.tokens]
        for block in blocks:
            cells.append(
                " ".join(
                    f'<button data-latent="{a.latent}">{a.latent}: {a.activation:.2f}</button>'
                    for a in pair.latents
                    if a.block == block
                )
            )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<table class="pairs"><tr>{heads}</tr>{"".join(rows)}</table>'


def latent_html(view: LatentView, labels: list[str]) -> str:
    """A latent's facts and where it fires, active tokens in «guillemets»."""
    report = view.report
    facts = [
        ("partition", report.block),
        ("relative decoder norm", f"{report.relative_decoder_norm:.3f}"),
        ("fires on", f"{report.firing_fraction:.3%} of the pairs looked at"),
        *view.facts,
    ]
    told = "".join(f"<li><b>{escape(what)}</b>: {escape(said)}</li>" for what, said in facts)
    contexts = []
    for snippet in report.snippets:
        alike = len(set(snippet.texts)) == 1
        texts = [("", snippet.texts[0])] if alike else zip(labels, snippet.texts, strict=True)
        lines = "<br>".join(f"<b>{escape(name)}</b> {escape(text)}" for name, text in texts)
        contexts.append(f"<p>{snippet.activation:.2f}: {lines}</p>")
    where = "".join(contexts) or "<p>It fires on none of the pairs looked at.</p>"
    return f'<h2>Latent {report.latent}</h2><ul>{told}</ul><div class="contexts">{where}</div>'


def strength_label(view: LatentView) -> str:
    """What the slider is called, with where the coherent range ends if an audit found it."""
    if view.coherent is None:
        return "Strength (1 is the latent's largest activation)"
    return f"Strength (the audit's answers are text up to {view.coherent:g})"


def steered_html(texts: list[SteeredText]) -> str:
    """Both models' continuations, before and after."""
    rows = []
    for one in texts:
        said = (
            f"<td>{escape(one.before)}</td><td>{escape(one.after)}</td>"
            if one.refused is None
            else f'<td colspan="2"><i>{escape(one.refused)}</i></td>'
        )
        rows.append(f"<tr><th>{escape(one.model)}</th>{said}</tr>")
    return (
        '<table class="pairs"><tr><th></th><th>before</th><th>after</th></tr>'
        f"{''.join(rows)}</table>"
    )
