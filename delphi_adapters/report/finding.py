"""A listed difference in plain words: what it is, where it shows, what its latent is about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsify_crosscoder.text.roles import LETTERS, NO_WRITER

from .data import Context, FeatureDetail, Searched
from .text import one_line

PASSAGES = 2
BEFORE, BEHIND = 90, 50  # characters around the strongest token that are shown of a passage

_TEMPLATE = re.compile(r"\s*(?:<\|[^|<>]{1,40}\|>\s*)+")
_SHARED = {
    "turned": "its direction is another in",
    "grew": "it is longer in",
    "shrank": "it is shorter in",
    "moved": "where it is present something has changed in",
}


def what_differs(finding: Mapping[str, Any], names: Sequence[str]) -> str:
    """What kind of difference it is, and whose."""
    own, verdict = names[finding["source"]], finding["verdict"]
    latent = f"latent {finding['latent']}"
    if finding["kind"] == "mean":
        return f"a constant shift of all activations of {own}"
    if finding["kind"] == "map":
        return f"a linear change in {own} of what the other model has"
    if finding["kind"] == "component":
        return f"one of the directions in which {own} is farthest from the model in its place"
    if finding["kind"] == "shared":
        return f"{latent}, which both models have: {_SHARED[verdict]} {own}"
    kind = f" ({finding['kind']}; the filter: {verdict.replace('_', ' ')})"
    return f"{latent}, which only {own} has{kind}"


def where_present(finding: Mapping[str, Any], names: Sequence[str], searched: Searched) -> str:
    """On how much of the text, who wrote that, and how far the models' next tokens differ there."""
    if finding["kind"] in ("mean", "map"):
        return "On every pair."
    share = finding["firings"] / finding["pairs"]
    told = f"On {share:.2%} of the pairs, in {finding['texts']:,} of {searched.texts:,} texts"
    writers = finding["writers"]
    if writers and set(writers) != {str(NO_WRITER)}:
        known = {str(NO_WRITER): "the data set", **{str(s): n for s, n in enumerate(names)}}
        wrote = ", ".join(f"{share:.0%} by {known[s]}" for s, share in writers.items())
        told += f"; written {wrote}"
    if finding["kl"] is None:
        return f"{told}."
    anywhere = "" if searched.mean_kl is None else f", anywhere by {searched.mean_kl:.2f}"
    heard = finding.get("kl_heard")
    answers = "" if heard is None else f", in what is answered there by {heard:.2f}"
    nats = f"{finding['kl']:.2f} nats{answers}{anywhere}"
    return f"{told}. There the models' next tokens differ by {nats}."


def how_sure(finding: Mapping[str, Any]) -> str:
    """Which share of the list down to a finding is false, of one for which that is known."""
    low, high = finding["q_interval"]
    return (
        f"Of the list down to this one {finding['q_value']:.0%} ({low:.0%} to {high:.0%}) would be "
        "there where nothing is to be found."
    )


def latent_lines(
    row: Mapping[str, Any], detail: FeatureDetail | None, source: int, names: Sequence[str]
) -> Iterator[str]:
    """What is known of a latent, most telling first, and its strongest passages.

    `row` is its own in the table of latents, `source` the model whose it is.
    """
    told = [
        ("explanation", row["explanation"]),
        ("words around it", row["characteristic_words"]),
        ("fires on", row["fires_on"]),
        (f"promotes in {names[source]}", row.get(f"promoted_{source}")),
    ]
    for what, text in told:
        if text:
            yield f"{what}: {one_line(text)}"
    shown: list[str] = []
    for context in [] if detail is None else detail.contexts:
        passage = marked(context, source)
        if passage not in shown and len(shown) < PASSAGES:
            shown.append(passage)
            yield f"strongest in: {passage}{_said(context, names)}"
    if row["likeness"] is not None:
        yield f"likeness of what steering both models with it does: {row['likeness']:.2f} of 1"
    if row["exclusivity"] is not None:
        yield f"exclusivity: {row['exclusivity']:.1f} of 5"


def _said(context: Context, names: Sequence[str]) -> str:
    """Who said the strongest token, and which model wrote that, by its name."""
    if not context.said:
        return ""
    role, comma, writer = one_line(context.said).partition(", written by ")
    if writer and writer in LETTERS[: len(names)]:
        writer = names[LETTERS.index(writer)]
    return f" ({role}{comma}{writer})"


def marked(context: Context, source: int) -> str:
    """The passage around the strongest token, on one line, with that token in »«.

    Of a chat template's tokens it shows that there are some.
    """
    place = min(source, len(context.tokens) - 1)
    tokens, strengths = context.tokens[place], context.activations[place]
    peak = max(range(len(tokens)), key=lambda i: strengths[i])
    around = (tokens[:peak], tokens[peak + 1 :])
    before, behind = (_TEMPLATE.sub(" | ", "".join(some)) for some in around)
    parts = [
        *("… " if len(before) > BEFORE else "", before[-BEFORE:]),
        *("»", tokens[peak][:BEFORE], "«"),
        *(behind[:BEHIND], " …" if len(behind) > BEHIND else ""),
    ]
    return one_line("".join(parts), 2 * (BEFORE + BEHIND))
