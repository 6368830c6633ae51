"""Crosscoders on disk and on the hub, in sparsify's layout.

A checkpoint is a folder of two files. `sae.safetensors` holds `encoder.weight` [M, d_in],
`encoder.bias` [M], `W_dec` [M, d_in], `b_dec` [d_in], `mean` [d_in], `factors` [S],
`median_norms` [S] and `threshold` [G], whatever the architecture: weights that do not exist are
written as zeros, tied ones twice; beside them the `maps` [d_in, d_in] and the whitening of a
residual DFC. `cfg.json` holds the configuration, the architecture's registered name, the sources
and their widths, the normalisation factors and the inference thresholds.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from huggingface_hub import HfApi, snapshot_download
from natsort import natsorted
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor, nn

from ..files import atomic_path, atomic_write_json, remove_leftovers
from ..records import check, read_json, reading

if TYPE_CHECKING:
    from .base import Crosscoder

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


def blocks_to_dense(module: Any, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    """State dict hook: one dense matrix in place of the blocks' weights."""
    for b in range(len(module.partition.blocks)):
        del state[f"{prefix}encoder.weights.{b}"], state[f"{prefix}decoders.{b}"]
    sources = range(len(module.d_sources))
    with torch.no_grad():
        state[f"{prefix}encoder.weight"] = torch.cat([module.block_weight(s) for s in sources], 1)
        state[f"{prefix}W_dec"] = module.W_dec


def dense_to_blocks(
    module: Any, state: dict[str, Tensor], prefix: str, _metadata, _strict, missing, _extra, errors
) -> None:
    """Inverse of `blocks_to_dense`; refuses weights where the architecture has none."""
    # Crosscoders of version 0.1.0 do not know their median norms.
    unknown = torch.zeros_like(module.median_norms)
    state.setdefault(f"{prefix}median_norms", unknown)
    for dense_name, name, is_decoder in (
        ("encoder.weight", "encoder.weights", False),
        ("W_dec", "decoders", True),
    ):
        dense = state.pop(f"{prefix}{dense_name}", None)
        if dense is None:
            continue
        for b, block in enumerate(module.partition.blocks):
            rows = dense[block.start : block.stop]
            columns = [module.columns[s] for s in block.sources]
            parts = [rows[:, c] for c in columns]
            if block.tied and is_decoder:
                if not all(torch.equal(parts[0], part) for part in parts[1:]):
                    errors.append(f"{dense_name}: the tied block '{block.name}' is not tied")
                parts = parts[:1]
            outside = [rows[:, c] for s, c in enumerate(module.columns) if s not in block.sources]
            if any(bool(part.any()) for part in outside):
                errors.append(f"{dense_name}: block '{block.name}' has weights to other sources")
            state[f"{prefix}{name}.{b}"] = torch.cat(parts, 1)


def save(crosscoder: Crosscoder, path: Path) -> None:
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


def _class_for(arch: str) -> type[Crosscoder]:
    from .base import Crosscoder

    waiting: list[type[Crosscoder]] = [Crosscoder]
    while waiting:
        known = waiting.pop()
        if known.__dict__.get("arch") == arch:
            return known
        waiting.extend(known.__subclasses__())
    from ..registry import get_architecture

    return get_architecture(arch).coder_class


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


def load(path: Path, device: str | torch.device = "cpu") -> Crosscoder:
    raw = read_config(path)
    with reading(path / CONFIG, _RESTORE):
        check(raw, _MoreDescribed)
    cls = _class_for(raw["arch"])
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
) -> dict[str, Crosscoder]:
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


def load_one(run: Path, seed: int | None, device: str | torch.device) -> Crosscoder:
    if (run / CONFIG).exists() and seed is None:
        return load(run, device)
    names = own_crosscoders(run)
    if not names:
        raise FileNotFoundError(f"No crosscoder in '{run}'.{_runs_inside(run)}")
    wanted = [n for n in names if seed is None or n.endswith(f"/seed{seed}")]
    if not wanted:
        raise ValueError(f"'{run}' has no crosscoder of seed {seed}: {names}.")
    return load(run / wanted[0], device)


def load_from_hub(name: str, hookpoint: str | None, device: str | torch.device) -> Crosscoder:
    folder = download(name, f"{hookpoint}/*" if hookpoint else None)
    return load(folder / hookpoint if hookpoint else folder, device)


def download(repo: str, pattern: str | None) -> Path:
    """A local folder with the repository's files: the repository itself if it is a folder here."""
    if Path(repo).is_dir():
        return Path(repo)
    return Path(snapshot_download(repo, allow_patterns=pattern))


def push_to_hub(crosscoder: Crosscoder, repo: str, hookpoint: str | None, **options: Any) -> str:
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
    api.create_repo(repo, private=options.pop("private", None), exist_ok=True)
    info = api.upload_folder(folder_path=folder, repo_id=repo, path_in_repo=path_in_repo, **options)
    return str(info)


@torch.no_grad()
def export_sae(crosscoder: Crosscoder, source: int, path: Path) -> SparseCoder:
    columns = crosscoder.columns[source]
    factor = crosscoder.factors[source].to(crosscoder.dtype)
    mean, b_dec = crosscoder.mean[columns].to(crosscoder.dtype), crosscoder.b_dec[columns]
    cfg = SparseCoderConfig(
        num_latents=crosscoder.num_latents, k=crosscoder.cfg.k, normalize_decoder=False
    )
    sae = SparseCoder(
        crosscoder.d_sources[source], cfg, device=crosscoder.device, dtype=crosscoder.dtype
    )
    weight = crosscoder.encoder_weight(source).clone()
    for block in crosscoder.partition.blocks:
        if source not in block.sources:
            weight[block.start : block.stop] = 0
    # sparsify subtracts b_dec before it encodes, a crosscoder does not: the bias makes it up.
    bias = crosscoder.encoder.bias + weight @ b_dec
    for block in crosscoder.partition.blocks:
        if source not in block.sources:
            bias[block.start : block.stop] = -1.0  # with no weights: never active
    sae.encoder.weight.copy_(weight * factor)
    sae.encoder.bias.copy_(bias)
    assert isinstance(sae.W_dec, nn.Parameter)
    sae.W_dec.copy_(crosscoder.decoder(source) / factor)
    sae.b_dec.copy_(b_dec / factor + mean)
    sae.save_to_disk(path)
    return sae
