"""Automatic interpretation of crosscoder latents with EleutherAI's delphi."""
