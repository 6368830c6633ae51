"""Pairs of models that differ, but in nothing that is looked for: what is listed is false."""
