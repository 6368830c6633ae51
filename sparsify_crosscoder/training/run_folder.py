"""What a run leaves on disk.

    <run>/config.json                 options, versions, git state, what it is trained on
    <run>/metrics.jsonl               one line per `log_every` steps
    <run>/summary.json                the result, written at the end
    <run>/<hookpoints>/               the newest crosscoder: sae.safetensors, cfg.json
    <run>/checkpoints/step_000700/    all that resuming needs, in sparsify's layout

A checkpoint is written under a temporary name and renamed when it is whole; only then does its
crosscoder replace the one in the run folder, and the checkpoint before it go.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config import CrosscoderTrainConfig
from ..crosscoders.checkpoints import CONFIG, WEIGHTS
from ..files import atomic_path, atomic_write_json, remove_leftovers
from ..records import check, read_json, read_lines, reading

PACKAGES = ("sparsify-crosscoder", "eai-sparsify", "torch", "transformers", "datasets")

# Options that may differ between a run and its continuation: they change no weight.
FREE_OPTIONS = {
    "resume",
    "save_every",
    "save_best",
    "log_to_wandb",
    "wandb_log_frequency",
    "log_every",
    "hf_token",
    "trust_remote_code",
    "save_dir",
    "run_name",
    "data_preprocessing_num_proc",
    "max_steps",
    "epochs",
    "environment",
}
SCHEDULE = (
    "k_decay_steps",
    "lr_warmup_steps",
    "initial_k",
    "threshold_start_step",
    "threshold_decay",
)


class _Logged(TypedDict):
    step: int


class _Progress(TypedDict):
    """What a checkpoint's trainer.json holds."""

    pairs_trained: int
    seconds: float
    dropped: Any


class _State(TypedDict):
    """What a checkpoint's trainer.json and its state files hold together, beside tensors."""

    global_step: int
    pairs_trained: int
    seconds: float
    dropped: Any
    best_loss: Any
    num_tokens_since_fired: dict[str, Any]


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path

    def check_free(self) -> None:
        """Raise ValueError if another run is in the folder."""
        found = [
            name
            for name in ("config.json", "metrics.jsonl", "summary.json", "checkpoints")
            if (self.path / name).exists()
        ]
        if found:
            raise ValueError(
                f"'{self.path}' already holds a run ({', '.join(found)}). Continue it with "
                f"--resume, choose another --run_name, or delete the folder."
            )

    def check_resumable(self, cfg: CrosscoderTrainConfig) -> None:
        """Take the schedule that the run began with, and refuse options that differ from its own.

        Raises FileNotFoundError if there is nothing to resume, ValueError naming what differs.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise FileNotFoundError(
                f"'{self.path}' holds no run to resume; check --save_dir and --run_name, or leave "
                f"--resume off to begin one."
            )
        before = read_json(file, dict, self.restore)
        self._logged()
        note_order(before)
        for name in (*SCHEDULE, "order_seed"):
            if getattr(cfg, name, 0) is None:
                setattr(cfg, name, before.get(name))
        if not cfg.hookpoints and not cfg.layers:
            cfg.hookpoints = before.get("hookpoints", [])
        cfg.trained_on = before.pop("trained_on", None) or {}
        if not cfg.trained_on:
            logging.getLogger(__name__).warning(
                "The run in '%s' has no record of its models and texts, so it cannot be checked "
                "that they are the same.",
                self.path,
            )
        now = json.loads(json.dumps(cfg.to_dict()))
        # Options that there were none of when the run began are as they are left out.
        before = {**_left_out(cfg), **before}
        changed = [
            f"{name}: {before.get(name)!r} before, {now.get(name)!r} now"
            for name in sorted(before.keys() | now.keys())
            if name not in FREE_OPTIONS
            and before.get(name) != now.get(name)
            # Layers become hookpoints once the models are known.
            and not (name in ("hookpoints", "layers") and cfg.layers)
        ]
        if changed:
            raise ValueError(
                f"The run in '{self.path}' was begun with other options; a resumed run must keep "
                f"them:\n  " + "\n  ".join(changed)
            )

    def begin(
        self,
        cfg: CrosscoderTrainConfig,
        step: int,
        *,
        resumed: bool,
        trained_on: dict[str, Any] | None = None,
    ) -> None:
        """Write the options of a new run, or cut the log of a resumed one back to `step`.

        `trained_on` is what `provenance.record` says of its models and texts. Raises ValueError if
        another run is in the folder.
        """
        if not resumed:
            self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(line) for line in self._logged() if line["step"] <= step]
        options = {**cfg.to_dict(), "environment": environment()}
        if trained_on is not None:
            options["trained_on"] = trained_on
        atomic_write_json(self.path / "config.json", options)
        with atomic_path(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def _logged(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, without a last one that a kill cut off."""
        remedy = "Restore it, or delete it: the log then begins where the run goes on."
        return read_lines(self.path / "metrics.jsonl", _Logged, remedy)

    @property
    def restore(self) -> str:
        """What to do about a damaged file."""
        return f"Restore it from a copy, or delete '{self.path}' and begin again."

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        atomic_write_json(self.path / "summary.json", {**summary, **environment()})

    # Checkpoints

    @contextmanager
    def new_checkpoint(self, step: int, names: list[str], extra: dict[str, Any]) -> Iterator[Path]:
        """A folder to write a checkpoint into, which becomes the run's newest when it is whole.

        Raises OSError if the disk is full; the checkpoint before is then still the newest.
        """
        checkpoints = self.path / "checkpoints"
        remove_leftovers(checkpoints)
        final = checkpoints / f"step_{step:06d}"
        try:
            with atomic_path(final) as temporary:
                temporary.mkdir()
                yield temporary
                atomic_write_json(temporary / "trainer.json", extra)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            free = shutil.disk_usage(checkpoints).free
            raise OSError(
                f"The checkpoint '{final}' could not be written ({error}); {free / 1e9:.1f} GB are "
                "free there. Make room and go on with --resume: what was saved before is whole."
            ) from error
        self.publish(step, names)

    def publish(self, step: int, names: list[str]) -> None:
        """Make the crosscoders of a whole checkpoint those of the run, and drop older ones."""
        newest = self.path / "checkpoints" / f"step_{step:06d}"
        for name in names:
            self._publish(newest / name, self.path / name)
        for older in self._checkpoints():
            if older != newest:
                shutil.rmtree(older)

    def holds_checkpoint(self, step: int) -> bool:
        return (self.path / "checkpoints" / f"step_{step:06d}").exists()

    @staticmethod
    def _publish(source: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        for name in (WEIGHTS, CONFIG):
            with atomic_path(target / name) as temporary:
                try:
                    os.link(source / name, temporary)
                except OSError:  # a file system without hard links
                    shutil.copyfile(source / name, temporary)

    def newest_checkpoint(self) -> Path | None:
        """The last whole checkpoint, None if the run was stopped before its first."""
        return max(
            self._checkpoints(), key=lambda folder: int(folder.name[len("step_") :]), default=None
        )

    def _checkpoints(self) -> list[Path]:
        """Whole checkpoints, without copies of them under other names."""
        found = (self.path / "checkpoints").glob("step_*")
        return [folder for folder in found if re.fullmatch(r"step_\d+", folder.name)]

    def load_checkpoint(self, names: list[str], device: torch.device) -> dict[str, Any]:
        """Everything that `new_checkpoint` kept, by name.

        Raises FileNotFoundError without a checkpoint, ValueError naming a damaged file.
        """
        folder = self.newest_checkpoint()
        if folder is None:
            raise FileNotFoundError(f"There is no checkpoint in '{self.path}'.")

        def tensors(name: str) -> Any:
            return torch.load(folder / name, map_location=device, weights_only=True)

        def numbered(stem: str) -> list[Any]:
            found = []
            for one in sorted(folder.glob(f"{stem}_[0-9].pt")):
                with reading(one, self.restore, "damaged or truncated"):
                    found.append(tensors(one.name))
                    check(found[-1], dict)
            return found

        file = "trainer.json"
        try:
            state = dict(read_json(folder / file, _Progress, self.restore))
            for file in ("state.pt", "rank_0_state.pt"):
                with reading(folder / file, self.restore, "damaged or truncated"):
                    state |= tensors(file)
            file = "lr_scheduler_*.pt"
            state["lr_schedulers"] = numbered("lr_scheduler")
            file = "optimizer_*.pt"
            state["optimizers"] = numbered("optimizer")
            state["weights"] = {}
            for name in names:
                file = f"{name}/{WEIGHTS}"
                with reading(folder / file, self.restore, "damaged or truncated"):
                    state["weights"][name] = load_file(str(folder / file), device=str(device))
        except FileNotFoundError as error:
            raise ValueError(
                f"The checkpoint '{folder}' has no {file}; it cannot be resumed. {self.restore}"
            ) from error
        with reading(folder, self.restore):
            check(state, _State)
        return state


def note_order(options: dict[str, Any]) -> None:
    """Add to a run's options the seed of its order, where an earlier version kept none: it had one
    order for all initial seeds."""
    if "shuffle_seed" in options:
        options.setdefault("order_seed", options["shuffle_seed"])


def _left_out(cfg: CrosscoderTrainConfig) -> dict[str, Any]:
    """Values of options that are left out."""
    values = {}
    for option in dataclasses.fields(cfg):
        if option.default is not dataclasses.MISSING:
            values[option.name] = option.default
        elif option.default_factory is not dataclasses.MISSING:
            values[option.name] = option.default_factory()
    return {k: v for k, v in values.items() if k in cfg.to_dict() and k != "sae"}


def environment() -> dict[str, Any]:
    """Versions of what a run depends on, and the git state of the working directory."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], capture_output=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        said = done.stdout.decode(errors="replace").strip()
        return said if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: installed(package) for package in PACKAGES},
        },
        "git": {
            "commit": git("rev-parse", "HEAD"),
            "changed": None if status is None else bool(status),
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
