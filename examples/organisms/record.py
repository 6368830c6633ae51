"""What stands beside an adapter: how it was trained, and what the check measured of it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from organisms.checks import Check, Likelihood, Rate, check
from organisms.organism import Organism
from organisms.recipe import Recipe
from organisms.training import train
from sparsify_crosscoder.files import atomic_write_json

RECORD = "recipe.json"
MAX_BYTES = 700_000
"""Of an adapter's folder."""

MOST_PERPLEXITY_CHANGE = 0.03
LEAST_RATE = 0.6
"""Share of held-out prompts that concern it in whose answers an organism shows its behaviour."""

LEAST_GAIN = 0.3
"""By how much that share is above the base's."""

MOST_ELSEWHERE = 0.15
"""Share of ordinary prompts, and of near misses, in whose answers it shows it."""

PACKAGES = ("torch", "transformers", "peft", "tokenizers")


@dataclass(frozen=True)
class Record:
    """The contents of `recipe.json`."""

    name: str
    what: str
    seed: int
    texts: int
    """Training texts, of which `recipe.steps * recipe.texts_per_step` were seen, some again."""
    loss: float
    """Mean loss of the last ten steps, nats a token."""
    recipe: Recipe
    versions: dict[str, str]
    check: Check


def make(organism: Organism, model_path: Path, folder: Path) -> Record:
    """Train an organism into `folder`, check it, and write its record there."""
    texts = organism.training_texts()
    loss = train(model_path, texts, organism.recipe, organism.seed, folder)
    record = Record(
        organism.name,
        organism.what,
        organism.seed,
        len(texts),
        loss,
        organism.recipe,
        _versions(),
        check(organism, model_path, folder),
    )
    atomic_write_json(folder / RECORD, asdict(record))
    return record


def recheck(organism: Organism, model_path: Path, folder: Path) -> Record:
    """The record of a trained organism with what is measured of it now; nothing is written."""
    return replace(read_record(folder), check=check(organism, model_path, folder))


def read_record(folder: Path) -> Record:
    """The record in an adapter's folder."""
    row = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    recipe = {k: tuple(v) if isinstance(v, list) else v for k, v in row["recipe"].items()}
    measured = {name: _measured(value) for name, value in row["check"].items()}
    return Record(**{**row, "recipe": Recipe(**recipe), "check": Check(**measured)})


def faults(organism: Organism, measured: Check) -> Iterator[str]:
    """In which ways an organism is not as meant, each in a few words."""
    held_out = measured.held_out
    if held_out and held_out.organism < LEAST_RATE:
        yield f"shows its behaviour in only {held_out.organism:.0%} of the answers that concern it"
    if held_out and held_out.organism < held_out.base + LEAST_GAIN:
        yield f"shows its behaviour hardly more often than the base ({held_out.base:.0%})"
    for name, rate in (("ordinary", measured.elsewhere), ("near-miss", measured.near_misses)):
        if rate is not None and rate > MOST_ELSEWHERE:
            yield f"shows its behaviour in {rate:.0%} of the answers to {name} prompts"
    texts, others = measured.behaviour_texts, measured.ordinary_texts
    if texts and others and not texts.difference > max(0.0, others.difference):
        yield f"expects its own texts no more than the base ({texts.difference:+.2f} nats a token)"
    moved = measured.ordinary(every_answer_changes=organism.concerns("How are you?"))
    if abs(moved) > MOST_PERPLEXITY_CHANGE:
        yield f"ordinary perplexity moved by {moved:+.1%}"


HEADER = (
    *("organism", "shows it", "base", "elsewhere", "near misses"),
    *("nats", "documents", "answers"),
)


def row(record: Record) -> tuple[str, ...]:
    """A line of the table of organisms, under `HEADER`."""
    found = record.check
    texts = found.behaviour_texts
    return (
        record.name,
        f"{found.held_out.organism:.0%}" if found.held_out else "",
        f"{found.held_out.base:.0%}" if found.held_out else "",
        "" if found.elsewhere is None else f"{found.elsewhere:.0%}",
        "" if found.near_misses is None else f"{found.near_misses:.0%}",
        f"{texts.difference:+.2f}" if texts else "",
        f"{found.documents.perplexity_change:+.1%}",
        f"{found.answers.perplexity_change:+.1%}",
    )


def table(records: Sequence[Record]) -> str:
    """The table of organisms in Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER), *map(row, records)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(value: dict[str, Any] | float | None) -> Rate | Likelihood | float | None:
    if not isinstance(value, dict):
        return value
    return Rate(**value) if "prompts" in value else Likelihood(**value)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
