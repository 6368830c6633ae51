"""What is kept of the plants of a run: a folder, to which a stopped command comes back.

<run>/plants/settings.json    what is planted, how it is looked for, and the crosscoder's digest
<run>/plants/rounds.jsonl     a line for each training: first with nothing planted
<run>/plants/recall.json      all of it, once everything is done
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from ..crosscoders.checkpoints import WEIGHTS, own_crosscoders
from ..files import atomic_path, atomic_write_json
from ..hashing import hash_file
from ..records import read_json, read_lines
from ..runs.run import Run
from .planted_recall import PlantedRecall, PlantFound, Round
from .plants import Cell

ROUNDS, SETTINGS, RECALL = "rounds.jsonl", "settings.json", "recall.json"
FILES = (ROUNDS, SETTINGS, RECALL)


class _Kept(TypedDict):
    """Of a recall as JSON, what is read again."""

    settings: dict[str, Any]
    steps: int
    nowhere: list[dict[str, Any]]


def default_folder(run: Run) -> Path:
    """Where a run's plants are kept."""
    return run.path / "plants"


def crosscoder_digest(run: Run) -> str:
    """Of the run's first crosscoder."""
    return hash_file(run.path / own_crosscoders(run.path)[0] / WEIGHTS)


def kept_file(run: Run) -> Path | None:
    """All that was planted into a run, if it is kept with it and of its crosscoder."""
    return None if kept_recall(run) is None else default_folder(run) / RECALL


def kept_recall(run: Run, folder: Path | None = None) -> PlantedRecall | None:
    """What was found of what was planted into a run, if it is kept with it, or in a folder.

    None where it is of another crosscoder than the run's. Raises Damaged.
    """
    folder = default_folder(run) if folder is None else folder
    if not (folder / RECALL).exists():
        return None
    remedy = f"Delete '{folder}': all is then done again."
    kept = read_json(folder / RECALL, _Kept, remedy)
    if kept["settings"].get("crosscoder") != crosscoder_digest(run):
        return None
    nothing, *rounds = read_rounds(folder)
    nowhere = [Cell(**cell) for cell in kept["nowhere"]]
    return PlantedRecall(rounds, nothing, nowhere, kept["settings"], kept["steps"])


def write_round(out: Path, done: Round) -> None:
    """Add a round to those that a folder holds."""
    with (out / ROUNDS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(done)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rounds(out: Path) -> list[Round]:
    """The rounds that a folder holds; a last line that was cut off is removed."""
    file = out / ROUNDS
    rows = read_lines(file, Round, f"Restore it, or delete '{out}': all is then done again.")
    if file.exists():
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with atomic_path(file) as temporary:
                temporary.write_bytes(whole)
            rows = rows[: whole.count(b"\n")]
    return [
        Round(**row | {"plants": [PlantFound(**plant) for plant in row["plants"]]}) for row in rows
    ]


def check_settings(settings: dict[str, Any], out: Path) -> None:
    """Keep the settings of plants; raises ValueError where there are plants of other ones."""
    settings = json.loads(json.dumps(settings))
    file = out / SETTINGS
    if not file.exists():
        return atomic_write_json(file, settings)
    found = read_json(file, dict, f"Restore it, or delete '{out}': all is then done again.")
    different = sorted(
        name if kind == "crosscoder" else f"{kind}: {name}"
        for kind in settings
        for name in _differing(kind, settings[kind], found.get(kind))
    )
    if different:
        raise ValueError(
            f"'{out}' holds plants of other settings ({', '.join(different)}). Choose another "
            f"--out, or delete the folder."
        )


def _differing(kind: str, now: Any, before: Any) -> list[str]:
    if not isinstance(now, dict) or not isinstance(before, dict):
        return [] if now == before else [kind]
    return [name for name in now if now[name] != before.get(name)]
