"""Writing a half in one of the formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..crosscoders import Crosscoder
from ..endings import UsageError
from ..files import atomic_path
from ..runs.run import Run
from . import dictionary_learning, plain_sparsify, saelens
from .origin import Origin

FORMATS: dict[str, Callable[[Crosscoder, int, Origin, Path], None]] = {
    "sparsify": plain_sparsify.write,
    "saelens": saelens.write,
    "dictionary_learning": dictionary_learning.write,
}
"""What writes a half of a crosscoder into a new folder, by the format's name."""


@dataclass(frozen=True)
class Exported:
    """A half that was written."""

    run: str
    source: int
    model: str | None
    hookpoint: str | None
    format: str
    out: str
    width: int
    num_latents: int

    never_fire: int
    """Latents that belong to other models alone."""

    def text(self) -> str:
        """One line."""
        return (
            f"Wrote source {self.source} ({self.model or 'unnamed'}, {self.hookpoint or 'unnamed'}"
            f") to {self.out} for {self.format}: width {self.width:,}, {self.num_latents:,} "
            f"latents, of which {self.never_fire:,} belong to other models and never fire."
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def export(
    run: Run, source: int, format: str, out: str | Path, *, seed: int | None = None
) -> Exported:
    """Write one source's half of a run's crosscoder as another library reads it.

    `format` is one of sparsify, saelens and dictionary_learning; `seed` is which of several initial
    seeds. `out` is a new folder, whole or not there at all. Raises UsageError if it exists, for an
    unknown format or source, and if the format needs thresholds that the crosscoder has not.
    """
    out = Path(out)
    if format not in FORMATS:
        raise UsageError(f"There is no format '{format}': take one of {', '.join(FORMATS)}.")
    if out.exists() or out.is_symlink():
        raise UsageError(f"'{out}' exists already; name a new folder with --out.")
    crosscoder = run.crosscoder(seed)
    last = len(crosscoder.d_sources) - 1
    if not 0 <= source <= last:
        raise UsageError(f"There is no source {source}: the run's models are 0 to {last}.")
    named = crosscoder.sources[source] if crosscoder.sources else {}
    origin = Origin(
        named.get("name"), named.get("revision"), named.get("hookpoint"), run.config.ctx_len
    )
    with atomic_path(out) as folder:
        folder.mkdir()
        FORMATS[format](crosscoder, source, origin, folder)
    others = (block for block in crosscoder.partition.blocks if source not in block.sources)
    return Exported(
        run=str(run.path),
        source=source,
        model=origin.model,
        hookpoint=origin.hookpoint,
        format=format,
        out=str(out),
        width=crosscoder.d_sources[source],
        num_latents=crosscoder.num_latents,
        never_fire=sum(map(len, others)),
    )
