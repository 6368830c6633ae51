"""Steering vectors on disk: one safetensors file with where the vector belongs and comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_path
from ..records import Damaged, check, reading
from .steering import Steering

_MAKE_ANEW = "Restore it, or make it anew with the command that made it."
_FORMAT = "sparsify-crosscoder steering vector 1"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction in one model's residual stream, of any origin."""

    vector: Tensor
    """In the raw activations of the hookpoint, `[D]`."""

    model: str
    """Hub id or folder of the model."""

    hookpoint: str
    scale: float = 1.0
    """Multiples of `vector` that a strength of 1 stands for."""

    provenance: dict[str, Any] = field(default_factory=dict)
    """What it was made from; JSON values."""

    checkpoint: str | None = None
    """Digest of the model's checkpoint (`checkpoint_digest`), if known."""

    revision: str | None = None
    """The hub's commit of the model, if it is the hub's."""

    def steering(self, **options: Any) -> Steering:
        """What steers with it; `options` are further fields of `Steering`."""
        return Steering(self.vector, self.hookpoint, self.scale, **options)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises ValueError where `path` holds something that is not such a vector.
        """
        path = Path(path)
        if path.exists():
            self.load(path)
        described = {
            "format": _FORMAT,
            "model": self.model,
            "hookpoint": self.hookpoint,
            "scale": repr(float(self.scale)),
            "provenance": json.dumps(self.provenance, ensure_ascii=False),
        }
        for name in ("checkpoint", "revision"):
            if (value := getattr(self, name)) is not None:
                described[name] = value
        with atomic_path(path) as temporary:
            save_file({"vector": self.vector.detach().float().cpu()}, temporary, described)

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Read what `save` wrote. Raises ValueError for anything else."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"There is no steering vector at '{path}'.")
        with reading(path, _MAKE_ANEW):
            with safe_open(path, framework="pt") as file:
                described = file.metadata() or {}
                if described.get("format") != _FORMAT:
                    raise Damaged(
                        f"'{path}' is not a steering vector of `sparsify-crosscoder persona`, "
                        "`transfer` or `SteeringVector.save`."
                    )
                vector = file.get_tensor("vector")
            scale, provenance = float(described["scale"]), json.loads(described["provenance"])
            check(provenance, dict, "its provenance")
            check(scale, float, "its scale")
            if vector.dim() != 1 or not vector.isfinite().all():
                raise ValueError("its vector is not one row of finite numbers")
            return cls(
                vector,
                described["model"],
                described["hookpoint"],
                scale,
                provenance,
                described.get("checkpoint"),
                described.get("revision"),
            )


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine similarity of two vectors (equation 14)."""
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()
