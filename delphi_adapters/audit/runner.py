"""Work that is done once: a folder each, which says what it was made from.

```
audit/
    STAGE/stage.json        its inputs, whether it is finished, its outputs and what they came to
    STAGE/...               its outputs
    superseded/STAGE-HASH/  what it was before its inputs changed; taken back if they do again
```
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hardware import give_back_memory
from sparsify_crosscoder.hashing import hash_file, hash_json
from sparsify_crosscoder.records import read_json, reading

from .outcome import Outcome

RECORD = "stage.json"
SUPERSEDED = "superseded"

State = Literal["done", "begun", "changed", "to do"]


@dataclass
class Record:
    """What `stage.json` holds."""

    stage: str
    inputs: dict[str, Any]
    finished: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    """Size of each output in bytes, by its path from the stage's folder."""

    fingerprint: str = ""
    """Changes with the outputs."""

    seconds: float = 0.0
    """Time that the work took, over all attempts that ended."""

    unfinished: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a stage's folder, or None where there is none.

        Raises ValueError for a file that is none.
        """
        path = folder / RECORD
        if not path.exists():
            return None
        remedy = "To mend it, delete it, and the stage is taken up again."
        kept = read_json(path, cls, remedy)
        with reading(path, remedy):
            return cls(**kept)

    def write(self, folder: Path) -> None:
        atomic_write_json(folder / RECORD, asdict(self))

    def intact(self, folder: Path) -> bool:
        """Whether the stage is finished and its outputs are as long as they were."""
        return self.finished and all(
            (path := folder / name).is_file() and path.stat().st_size == size
            for name, size in self.outputs.items()
        )


def state(folder: Path, inputs: Mapping[str, Any]) -> State:
    """What there is of a stage; "changed" is made from other inputs."""
    record = Record.read(folder)
    if record is None:
        return "to do"
    if record.inputs != inputs:
        return "changed"
    return "done" if record.intact(folder) else "begun"


def bring_up(
    stage: str,
    audit: Path,
    inputs: dict[str, Any],
    work: Callable[[Path], Outcome],
) -> Record:
    """Do the work of a stage, unless it was done from the same inputs.

    `work` gets the stage's folder. What an earlier, stopped attempt from the same inputs left
    there is still there, so that `work` can go on; what was made from other inputs is kept under
    `superseded`.
    """
    folder = audit / stage
    inputs = json.loads(json.dumps(inputs))
    record = Record.read(folder)
    if record is not None and record.inputs != inputs:
        folder.rename(_kept(audit, record))
        record = None
    if record is None:
        before = audit / SUPERSEDED / f"{stage}-{fingerprint(inputs)}"
        if not folder.exists() and before.exists():
            before.rename(folder)
            record = Record.read(folder)
        record = record or Record(stage, inputs)
    if record.intact(folder):
        return record
    record.finished = False
    record.write(folder)
    begun = time.monotonic()
    outcome = work(folder)
    give_back_memory()  # the next stage loads models of its own
    record.seconds += time.monotonic() - begun
    record.result = json.loads(json.dumps(outcome.result))
    record.outputs = {
        os.path.relpath(path, folder): path.stat().st_size for path in sorted(outcome.outputs)
    }
    identity = outcome.identity
    if identity is None:
        identity = {name: hash_file(folder / name) for name in record.outputs}
    record.fingerprint = fingerprint(identity)
    record.unfinished = outcome.unfinished
    record.finished = outcome.unfinished is None
    record.write(folder)
    return record


def fingerprint(value: Any) -> str:
    """Changes with JSON values."""
    return hash_json(value, sort_keys=True)[:16]


def fingerprint_path(path: str | Path) -> list[list[Any]] | None:
    """Name, size and time of the last change of a file or of all files of a folder; quick to tell.

    None if nothing is there, as for a name on a hub.
    """
    path = Path(path)
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return [[str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def fingerprint_run(path: str | Path) -> list[list[Any]] | None:
    """The same of a run's own files and of what was planted into it: what else lies in its folder
    does not count."""
    path = Path(path)
    if not path.exists():
        return None
    names = ("config.json", "summary.json", "plants/recall.json")
    files = [*(path / name for name in names), *path.glob("*/cfg.json"), *path.glob("*/*/cfg.json")]
    files += [file.with_name("sae.safetensors") for file in files if file.name == "cfg.json"]
    files = sorted(file for file in files if file.is_file())
    return [[str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _kept(audit: Path, record: Record) -> Path:
    """Where the results of other inputs go; the first free name."""
    name = f"{record.stage}-{fingerprint(record.inputs)}"
    folder = audit / SUPERSEDED
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
