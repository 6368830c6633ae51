"""Which model, and how it may be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelName:
    """Which model, and how it may be fetched."""

    name: str
    revision: str | None = None
    token: str | None = None
    trust_remote_code: bool = False
    """Whether code that comes with the model may be run."""

    @property
    def where(self) -> dict[str, Any]:
        """How transformers and the hub are told."""
        return {
            "revision": self.revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.name).is_dir()


def name_models(
    names: Sequence[str],
    revisions: Sequence[str | None] = (),
    *,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> list[ModelName]:
    """Several models that are fetched alike, at one revision each if there are revisions.

    Raises ValueError for a wrong number of revisions.
    """
    if revisions and len(revisions) != len(names):
        raise ValueError(
            f"{len(names)} models ({', '.join(names)}) need {len(names)} revisions in the same "
            f"order, got {len(revisions)}."
        )
    return [
        ModelName(name, revision, token, trust_remote_code)
        for name, revision in zip(names, revisions or [None] * len(names), strict=True)
    ]
