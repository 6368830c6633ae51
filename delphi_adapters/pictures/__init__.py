"""Pictures to pass on, from plain values."""
