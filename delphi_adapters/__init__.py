"""Crosscoders in delphi: caches, judges, and audits of what differs between two models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audit.api import audit

__all__ = ["audit"]
