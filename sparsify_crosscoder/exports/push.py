"""A run on the hub: its crosscoders, options, results and a model card, and nothing private."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..crosscoders.checkpoints import CONFIG, OPTIONS, WEIGHTS, own_crosscoders, upload
from ..endings import UsageError
from ..files import atomic_write_json
from ..records import read_json
from ..runs.run import Run
from .model_card import model_card
from .privacy import PRIVATE_OPTIONS, found_private, shareable

CARD = "README.md"
_RESTORE = "Restore it from a copy."


@dataclass(frozen=True)
class PushConfig:
    """How a run is shown on the hub."""

    repo: str
    """`NAMESPACE/NAME`, or `NAME` in the namespace of the token's owner."""

    listed: Mapping[str, Any] | None = None
    """What `filter --json` wrote of the run, for the card."""

    license: str | None = None
    """The hub's name of a licence, such as apache-2.0."""

    private: bool | None = None
    """Whether a new repository is private; None is the namespace's own default."""


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be."""

    run: str
    repo: str
    files: dict[str, int]
    """Bytes of each file."""

    card: str
    url: str | None
    """Of the commit; None where nothing was uploaded."""

    def text(self) -> str:
        """The files, and where they are."""
        lines = [f"{size:>14,}  {name}" for name, size in self.files.items()]
        if self.url is None:
            return "\n".join([self.card, *lines, f"Nothing was uploaded to {self.repo}."])
        return "\n".join([*lines, f"Uploaded to {self.repo}: {self.url}"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def push(run: Run, config: PushConfig, *, dry_run: bool = False) -> Pushed:
    """Upload a run: README.md, config.json, summary.json, metrics.jsonl and its crosscoders.

    Of places on this machine only the last step is kept; checkpoints, stores and tokens stay here.
    A `dry_run` needs no network. Raises UsageError for a name that the hub would refuse,
    FileNotFoundError for a run that is not finished, ValueError if something private is left.
    """
    try:
        validate_repo_id(config.repo)
    except HFValidationError as error:
        raise UsageError(f"'{config.repo}' is no name of a repository: {error}") from error
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        card = gather(run, config, folder)
        files = {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        url = None
        if not dry_run:
            url = _upload(folder, config, run.config.hf_token)
    return Pushed(str(run.path), config.repo, files, card, url)


def _upload(folder: Path, config: PushConfig, token: str | None) -> str:
    options = {"private": config.private, "commit_message": "Upload a crosscoder"}
    try:
        return upload(str(folder), config.repo, None, token=token, **options)
    except Exception as error:  # of an HTTP library that differs between versions of the hub's SDK
        why = " ".join(str(error).split())
        raise OSError(
            f"{config.repo} could not be uploaded: {why} Check the network, the name and the token "
            "(--hf_token, or `hf auth login`), and push again."
        ) from error


def gather(run: Run, config: PushConfig, folder: Path) -> str:
    """Put what is uploaded of a run into a new folder, and return its card."""
    names = own_crosscoders(run.path)
    if not names:
        raise FileNotFoundError(f"There is no crosscoder in '{run.path}' to upload.")
    card = model_card(run, config.repo, config.listed, config.license)
    folder.mkdir(parents=True)
    (folder / CARD).write_text(card, encoding="utf-8")
    options = read_json(run.path / OPTIONS, dict, _RESTORE)
    options |= {name: None for name in PRIVATE_OPTIONS if name in options} | {"save_dir": "."}
    atomic_write_json(folder / OPTIONS, shareable(options))
    atomic_write_json(folder / "summary.json", shareable(run.summary().to_dict()))
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(shareable(json.loads(line))) + "\n" for line in lines), encoding="utf-8"
    )
    for name in names:
        (folder / name).mkdir(parents=True)
        shutil.copyfile(run.path / name / WEIGHTS, folder / name / WEIGHTS)
        described = read_json(run.path / name / CONFIG, dict, _RESTORE)
        atomic_write_json(folder / name / CONFIG, shareable(described))
    _check(folder)
    return card


def _check(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".md"):
            private = found_private(file.read_text(encoding="utf-8"))
            if private:
                raise ValueError(
                    f"{file.relative_to(folder)} would say {private[0]!r}, which is private, so "
                    "nothing was uploaded."
                )
