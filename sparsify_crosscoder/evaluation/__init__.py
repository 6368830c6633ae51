"""Measuring a trained crosscoder."""
