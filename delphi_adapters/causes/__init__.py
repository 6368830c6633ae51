"""Stages of an audit that measure what latents cause in the models."""
