"""Crosscoders on disk and on the hub, in sparsify's layout.

A checkpoint is a folder of two files. `sae.safetensors` holds the state dict (`dense_state`).
`cfg.json` holds the configuration, the architecture's registered name, by which it is loaded, the
sources and their widths, the normalisation factors and the inference thresholds.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypedDict

import torch
from huggingface_hub import HfApi, snapshot_download
from natsort import natsorted
from safetensors.torch import load_file, save_file

from ..files import atomic_path, atomic_write_json, remove_leftovers
from ..records import check, read_json, reading
from ..registry import get_architecture
from .parameters import CrosscoderParameters

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
OPTIONS = "config.json"
"""Beside the crosscoders of a run, the options that it was started with."""
_RESTORE = "Restore it, use an earlier checkpoint, or train again."


class _Described(TypedDict):
    """What cfg.json says beside the crosscoder's own configuration."""

    arch: str
    d_sources: list[int]


class _MoreDescribed(_Described, total=False):
    sources: list[dict[str, Any]]


def save(crosscoder: CrosscoderParameters, path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    state = {name: t.detach().cpu().contiguous() for name, t in crosscoder.state_dict().items()}
    with atomic_path(path / WEIGHTS) as temporary:
        # One entry: of several, the order in the file would be random.
        save_file(state, str(temporary), metadata={"format": "pt"})
    thresholds = [None if t != t else t for t in crosscoder.threshold.tolist()]
    atomic_write_json(
        path / CONFIG,
        {
            **crosscoder.cfg.to_dict(),
            **crosscoder.fitted(),
            "arch": crosscoder.arch,
            "d_in": crosscoder.d_in,
            "d_sources": crosscoder.d_sources,
            "num_latents": crosscoder.num_latents,
            "sources": crosscoder.sources,
            "partition": crosscoder.partition.sizes,
            "factors": crosscoder.factors.tolist(),
            "thresholds": thresholds,
        },
    )


def read_config(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint's `cfg.json`, checked to be a crosscoder's."""
    file = path / CONFIG
    if not file.exists():
        inside = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}")) if path.is_dir() else []
        hint = f" It holds {inside}: load one of them." if inside else ""
        raise FileNotFoundError(f"'{path}' is no crosscoder checkpoint: no {CONFIG} in it.{hint}")
    cfg = read_json(file, dict, _RESTORE)
    absent = {"arch", "d_sources"} - cfg.keys()
    if absent:
        raise ValueError(
            f"'{file}' has no {sorted(absent)}: it is not a crosscoder's. A plain SAE is loaded by "
            f"sparsify.SparseCoder.load_from_disk."
        )
    return cfg


def load(path: Path, device: str | torch.device = "cpu") -> Any:
    """The crosscoder of a checkpoint, of the class that its architecture is registered with."""
    raw = read_config(path)
    with reading(path / CONFIG, _RESTORE):
        check(raw, _MoreDescribed)
    cls = get_architecture(raw["arch"]).coder_class
    weights = path / WEIGHTS
    if not weights.exists():
        raise FileNotFoundError(f"'{weights}' is missing; the checkpoint is not complete.")
    with reading(weights, _RESTORE, "damaged or truncated"):
        state = load_file(str(weights))
        dtype = state["b_dec"].dtype
    own = {k: v for k, v in raw.items() if k in cls.config_class.__dataclass_fields__}
    with reading(path / CONFIG, _RESTORE):
        check(own, cls.config_class)
        cfg = cls.config_class.from_dict(own)
        sources = raw.get("sources", ())
        crosscoder = cls(raw["d_sources"], cfg, device=device, dtype=dtype, sources=sources)
    try:
        crosscoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"'{weights}' does not fit '{path / CONFIG}': {error}") from error
    return crosscoder.eval()


def load_many(
    name: str,
    local: bool,
    layers: list[str] | None,
    device: str | torch.device,
    pattern: str | None,
) -> dict[str, Any]:
    folder = Path(name) if local else download(name, f"{pattern}/*" if pattern else None)
    if layers is None:
        layers = [name for name in own_crosscoders(folder) if fnmatch(name, pattern or "*")]
    if not layers:
        raise FileNotFoundError(f"No crosscoder in '{folder}'.{_runs_inside(folder)}")
    return {layer: load(folder / layer, device) for layer in natsorted(layers)}


def own_crosscoders(folder: Path) -> list[str]:
    """Names of the crosscoders that training put into a run's folder, or a push into a repository.

    They are `<hookpoints>` or `<hookpoints>/seed<N>`, the sources' hookpoints joined by "+". In a
    folder without any such, all crosscoders one level below it, or two as `seed<N>`. So other runs,
    copies, backups, exported halves and checkpoints inside a run are not taken for its own.
    """
    asked = _hookpoints_of_run(folder)
    found = [name for name in _candidates(folder) if name.split("/")[0] == asked]
    if found:
        return natsorted(found)
    hookpoints = {name: _hookpoints(folder / name / CONFIG) for name in _candidates(folder)}
    crosscoders = [name for name, places in hookpoints.items() if places is not None]
    own = [name for name in crosscoders if name.split("/")[0] == hookpoints[name]]
    return natsorted(own or crosscoders)


def _candidates(folder: Path) -> list[str]:
    """Where in a folder training could have put crosscoders."""
    found = [place.parent.relative_to(folder).as_posix() for place in folder.glob(f"*/{CONFIG}")]
    for place in folder.glob(f"*/seed*/{CONFIG}"):
        if re.fullmatch(r"seed-?\d+", place.parent.name):
            found.append(place.parent.relative_to(folder).as_posix())
    return found


def _hookpoints_of_run(folder: Path) -> str | None:
    """The joined hookpoints by a run's options; None where these do not say."""
    try:
        return "+".join(json.loads((folder / OPTIONS).read_text(encoding="utf-8"))["hookpoints"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hookpoints(file: Path) -> str | None:
    """The joined hookpoints of a crosscoder's sources; None for a file that is no crosscoder's."""
    try:
        cfg = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # a damaged one is not passed over: loading it says so
    if not isinstance(cfg, dict) or "d_sources" not in cfg:
        return None
    try:
        return "+".join(source["hookpoint"] for source in cfg["sources"])
    except (KeyError, TypeError):
        return ""


def _runs_inside(folder: Path) -> str:
    inside = sorted(file.parent.name for file in folder.glob(f"*/{OPTIONS}"))
    return f" It holds runs: {', '.join(inside)}; name one of them." if inside else ""


def load_one(run: Path, seed: int | None, device: str | torch.device) -> Any:
    if (run / CONFIG).exists() and seed is None:
        return load(run, device)
    names = own_crosscoders(run)
    if not names:
        raise FileNotFoundError(f"No crosscoder in '{run}'.{_runs_inside(run)}")
    wanted = [n for n in names if seed is None or n.endswith(f"/seed{seed}")]
    if not wanted:
        raise ValueError(f"'{run}' has no crosscoder of seed {seed}: {names}.")
    return load(run / wanted[0], device)


def load_from_hub(name: str, hookpoint: str | None, device: str | torch.device) -> Any:
    folder = download(name, f"{hookpoint}/*" if hookpoint else None)
    return load(folder / hookpoint if hookpoint else folder, device)


def download(repo: str, pattern: str | None) -> Path:
    """A local folder with the repository's files: the repository itself if it is a folder here."""
    if Path(repo).is_dir():
        return Path(repo)
    return Path(snapshot_download(repo, allow_patterns=pattern))


def push_to_hub(
    crosscoder: CrosscoderParameters, repo: str, hookpoint: str | None, **options: Any
) -> str:
    import tempfile

    if Path(repo).is_dir():
        target = Path(repo) / (hookpoint or "")
        save(crosscoder, target)
        return str(target)
    with tempfile.TemporaryDirectory() as folder:
        save(crosscoder, Path(folder))
        return upload(folder, repo, hookpoint, **options)


def upload(folder: str, repo: str, path_in_repo: str | None, **options: Any) -> str:
    """The one call that sends a folder to the hub."""
    api = HfApi(token=options.pop("token", None))
    repo = api.create_repo(repo, private=options.pop("private", None), exist_ok=True).repo_id
    info = api.upload_folder(folder_path=folder, repo_id=repo, path_in_repo=path_in_repo, **options)
    return str(info)
