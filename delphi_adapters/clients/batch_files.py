"""Message Batches under way, on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.records import check, read_json


@dataclass
class BatchFile:
    """A batch from before it is submitted until its answers are stored, as one JSON file."""

    path: Path
    model: str
    keys: list[str]
    """Of its requests; also their `custom_id`s."""
    id: str | None = None
    """The server's id; None until the server has told it."""
    after: str | None = None
    """The newest batch on the server before this one was submitted."""
    reserved: float = 0.0
    """The most it can cost in dollars."""
    adopted: bool = False
    """Whether `id` was found in the server's list and may be another's batch."""
    rejected: list[str] = field(default_factory=list)
    """Ids once adopted whose results were another's."""
    saved: bool = False
    """Whether the file exists."""

    def save(self) -> None:
        skipped = ("path", "saved")
        atomic_write_json(self.path, {k: v for k, v in vars(self).items() if k not in skipped})
        self.saved = True

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.saved = False

    def put_aside(self) -> None:
        """Keep the file, as `.gone`, for a batch that the server does not know (any more)."""
        self.path.replace(self.path.with_suffix(".gone"))
        self.saved = False

    @classmethod
    def load_all(cls, folder: Path) -> list[BatchFile]:
        """All batches in a folder; raises ValueError for a file that is none."""
        batches: list[BatchFile] = []
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            if path.name.startswith("."):  # being written, or left so by a kill
                continue
            try:
                kept = read_json(path, dict, "")
                check({**kept, "path": str(path)}, cls)
                batches.append(cls(path, saved=True, **kept))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path} is not the file of a batch ({error}). If you know that the batch is "
                    "of no use, remove the file; its requests are then submitted again."
                ) from None
        return batches
