"""What a harvest read and kept."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class HarvestReport:
    """What a harvest read and kept; reports of consecutive harvests add up with `+`."""

    windows: int = 0
    """Windows read."""

    pairs: int = 0
    """Aligned pairs whose activations were kept."""

    tokens: list[int] = field(default_factory=list)
    """Tokens that each source's model read, padding not counted."""

    seconds: float = 0.0
    """Wall time."""

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.seconds if self.seconds else 0.0

    def __add__(self, other: "HarvestReport") -> "HarvestReport":
        if self.tokens and other.tokens and len(self.tokens) != len(other.tokens):
            raise ValueError("Reports over different numbers of sources cannot be added.")
        tokens = [a + b for a, b in zip(self.tokens, other.tokens, strict=False)]
        return HarvestReport(
            windows=self.windows + other.windows,
            pairs=self.pairs + other.pairs,
            tokens=tokens or [*self.tokens, *other.tokens],
            seconds=self.seconds + other.seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "windows": self.windows,
            "pairs": self.pairs,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "pairs_per_second": self.pairs_per_second,
        }
