"""The stages of an audit, in order, and what each needs."""

from __future__ import annotations

NEEDS: dict[str, tuple[str, ...]] = {
    "harvest": (),
    "train": ("harvest",),
    "cache": ("train",),
    "filter": ("train",),
    "null": ("harvest", "train"),
    "describe": ("cache", "filter"),
    "explain": ("cache", "filter"),
    "score": ("explain",),
    "stitch": ("train",),
    "exclusivity": ("filter", "score", "stitch"),
    "rubrics": ("exclusivity",),
    "report": ("null", "describe", "exclusivity", "rubrics"),
}
"""Stages whose outputs each reads; what these read counts as well."""

STAGES = tuple(NEEDS)

WHAT = {
    "harvest": "activations of both models at the tokens that they have in common",
    "train": "the crosscoder",
    "cache": "where its latents fire, in delphi's files",
    "filter": "which exclusive latents stand for a difference",
    "null": "the same of a model against itself, where nothing differs",
    "describe": "words and tokens of latents, counted and computed",
    "explain": "what latents stand for, and which of them matter",
    "score": "whether explanations tell texts apart",
    "stitch": "affine maps between the two residual streams",
    "exclusivity": "whether what a latent does survives in the other model",
    "rubrics": "how far latents move both models on given questions",
    "report": "one page, and tables",
}
