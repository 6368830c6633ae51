"""What is compared with what, over which texts, and how large."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from organisms import Organism
from organisms.organism import ADAPTERS

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.records import read_json

Pair = Literal["base", "other"]
"""What stands beside the organism: the model that it was made of, or one of another family."""

TextKind = Literal["both", "base", "neither"]
"""Who wrote the answers: base and organism, each all of them; the base alone; another model."""

PAIRS: tuple[Pair, ...] = ("base", "other")
TEXT_KINDS: tuple[TextKind, ...] = ("both", "base", "neither")

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "crosscoder": ("--arch", "crosscoder"),
    "dfc": ("--arch", "dfc"),
    "rdfc-joint": ("--arch", "rdfc", "--selection", "joint"),
    "rdfc-grouped": ("--arch", "rdfc", "--selection", "grouped"),
    "rdfc-difference": ("--arch", "rdfc", "--selection", "grouped", "--difference_weight", "1"),
}
"""Options of `sparsify` for each."""

REMEDY = "Delete it: it is made again."
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """How much is asked, and how long is trained."""

    prompts: int = 200
    answer_tokens: int = 64
    latents: int = 1024
    k: int = 32
    steps: int = 300
    pairs_per_step: int = 1024


QUICK = Scale(prompts=60, answer_tokens=24, steps=100)


@dataclass(frozen=True)
class Bench:
    """The models, the scale, and the folder in which everything is kept."""

    base: Path
    other: Path
    """A model of another family."""

    out: Path
    scale: Scale = Scale()
    adapters: Path = ADAPTERS

    def partner(self, organism: Organism) -> str:
        """An organism as a model's name."""
        return f"{self.base}+{self.adapters / organism.name}"

    def folder(self, organism: Organism) -> Path:
        """Where all that is made of an organism is."""
        return self.out / organism.name

    def check(self) -> None:
        """Raise ValueError where the folder holds a table of other settings."""
        mine = {"base": str(self.base), "other": str(self.other), **asdict(self.scale)}
        file = self.out / "settings.json"
        if file.is_file() and read_json(file, dict, REMEDY) != mine:
            raise ValueError(
                f"'{self.out}' holds a table of other models or another size; give another --out."
            )
        self.out.mkdir(parents=True, exist_ok=True)
        atomic_write_json(file, mine)


@dataclass(frozen=True)
class Case:
    """An organism beside one other model, over one kind of text."""

    bench: Bench
    organism: Organism
    pair: Pair
    text: TextKind

    @property
    def folder(self) -> Path:
        return self.bench.folder(self.organism) / f"{self.pair}-{self.text}"

    @property
    def first(self) -> str:
        """The model that the organism is compared with."""
        return str(self.bench.base if self.pair == "base" else self.bench.other)

    @property
    def label(self) -> dict[str, Any]:
        """What all of its rows begin with."""
        return {"organism": self.organism.name, "pair": self.pair, "text": self.text}
