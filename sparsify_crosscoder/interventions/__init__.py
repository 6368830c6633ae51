"""Pushing models with what a crosscoder found: steering, stitching, transfer, persona vectors."""
