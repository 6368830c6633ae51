"""Model stitching: affine maps that carry points and directions between two residual streams.

Chen et al. 2025, Transferring features across language models with model stitching; section B.5.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..files import atomic_path, atomic_write_json
from ..harvest.model_identity import same_model
from ..hashing import hash_bytes
from ..records import check, read_json, reading
from ..store.stream import ActivationStream
from .affine_maps import (
    AffineMap,
    Normalization,
    NormalizedPairs,
    closed_form,
    compare,
    evaluate,
    random_maps,
    train,
    without_outliers,
)
from .stitching_config import StitchingConfig

WEIGHTS = "stitching.safetensors"
CONFIG = "cfg.json"
KIND = "stitching"
_MAKE_ANEW = "Restore it, or delete the folder and make the stitching anew."


class _Facts(TypedDict):
    """What cfg.json holds."""

    config: dict[str, Any]
    sources: list[dict[str, Any]]
    text: dict[str, Any]
    report: dict[str, Any]
    sha256: str


LEAST_HELD_OUT = 100  # pairs; the R2 of fewer says little


@dataclass
class Stitching:
    """Two affine maps on raw activations, one from each of two sources to the other.

    Sources keep the numbers that they have in the run or stream.
    """

    maps: dict[int, AffineMap]
    """By the source that is read: `[D_other, D_source]` and `[D_other]`."""

    cfg: StitchingConfig = field(default_factory=StitchingConfig)

    sources: list[dict[str, Any]] = field(default_factory=list)
    """`name`, `hookpoint` and `width` of the two sources, in the order of `cfg.sources`."""

    text: dict[str, Any] = field(default_factory=dict)
    """What the pairs come from; for a run also how it was told from what the run trained on."""

    report: dict[str, Any] = field(default_factory=dict)
    """What the fit came to on held-out pairs: R2 of both maps and round trips."""

    def width(self, source: int) -> int:
        """Width of one of the two sources."""
        return self._map(source).weight.shape[1]

    def other(self, source: int) -> int:
        """The source to which the map from `source` leads."""
        self._map(source)
        return self.cfg.sources[1 - self.cfg.sources.index(source)]

    def point(self, x: Tensor, source: int) -> Tensor:
        """What activations of `source` are in the other source.

        Raw `[..., D_source]` to raw `[..., D_other]`, in the dtype and on the device of `x`.
        Raises ValueError for a source that is not stitched, or a wrong width.
        """
        return self._apply(x, source, bias=True)

    def direction(self, v: Tensor, source: int, *, bias: bool = False) -> Tensor:
        """What a direction of `source` is in the other source, such as a raw decoder vector.

        `[..., D_source]` to `[..., D_other]`, by the linear part: adding `v` to a point adds this
        to the point it is mapped to. With `bias` the bias is added as well, as in equation 18.
        Raises ValueError as `point` does.
        """
        return self._apply(v, source, bias=bias)

    def check_sources(self, sources: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError if this does not stitch two of these sources, those of a run."""
        for number, own in zip(self.cfg.sources, self.sources, strict=True):
            theirs = sources[number] if number < len(sources) else {}
            for name in ("hookpoint", "width"):
                if name in own and own[name] != theirs.get(name):
                    raise ValueError(
                        f"This stitching is of source {number} with {name} {own[name]!r}, but the "
                        f"run's has {theirs.get(name)!r}; make one with `sparsify-crosscoder "
                        "stitch RUN`."
                    )
            if same_model(own, theirs):
                continue
            if own.get("checkpoint") and theirs.get("checkpoint"):
                raise ValueError(
                    f"This stitching is of source {number} with the model '{own['name']}', and the "
                    f"run's, '{theirs['name']}', has other weights; make one with "
                    "`sparsify-crosscoder stitch RUN`."
                )
            if own.get("name"):
                logging.getLogger(__name__).warning(
                    "This stitching is of source %d with the model '%s', the run's is '%s'; that "
                    "they are the same cannot be checked.",
                    *(number, own.get("name"), theirs.get("name")),
                )

    def to(self, device: torch.device | str) -> Stitching:
        """The same stitching on another device."""
        maps = {source: one.to(device) for source, one in self.maps.items()}
        return Stitching(maps, self.cfg, self.sources, self.text, self.report)

    def _map(self, source: int) -> AffineMap:
        if source not in self.maps:
            raise ValueError(
                f"This stitching joins sources {self.cfg.sources[0]} and {self.cfg.sources[1]}; "
                f"there is no map from source {source}."
            )
        return self.maps[source]

    def _apply(self, x: Tensor, source: int, *, bias: bool) -> Tensor:
        one = self._map(source).to(x.device)
        if not x.ndim or x.shape[-1] != one.weight.shape[1]:
            raise ValueError(
                f"Source {source} is {one.weight.shape[1]} wide, got a tensor of shape "
                f"{list(x.shape)}."
            )
        mapped = x.float() @ one.weight.T
        return (mapped + one.bias if bias else mapped).to(x.dtype)

    # On disk

    def save(self, folder: str | Path) -> None:
        """Write `stitching.safetensors` and `cfg.json`; an older stitching there is replaced.

        Raises ValueError if the folder holds anything else.
        """
        folder = Path(folder)
        check_folder(folder)
        if (folder / CONFIG).exists():
            self._write(folder)
        else:
            with atomic_path(folder) as temporary:
                temporary.mkdir()
                self._write(temporary)

    def _write(self, folder: Path) -> None:
        tensors = {}
        for source, one in self.maps.items():
            tensors[f"weight_{source}"] = one.weight.cpu().contiguous()
            tensors[f"bias_{source}"] = one.bias.cpu().contiguous()
        data = save(tensors)
        with atomic_path(folder / WEIGHTS) as temporary:
            temporary.write_bytes(data)
        facts = {
            "kind": KIND,
            "config": asdict(self.cfg),
            "sources": self.sources,
            "text": self.text,
            "report": self.report,
            "sha256": hash_bytes(data),
        }
        atomic_write_json(folder / CONFIG, facts)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Stitching:
        """Read what `save` wrote.

        Raises FileNotFoundError if nothing is there, and ValueError if the folder holds something
        else or is damaged.
        """
        folder = Path(folder)
        facts = _read_config(folder)
        weights = folder / WEIGHTS
        if not weights.exists():
            raise FileNotFoundError(f"'{weights}' is missing; make the stitching anew.")
        data = weights.read_bytes()
        with reading(weights, _MAKE_ANEW):
            if hash_bytes(data) != facts["sha256"]:
                raise ValueError("it is not the file that cfg.json was written for")
            tensors = load(data)
            cfg = StitchingConfig(**facts["config"])
            maps = {s: AffineMap(tensors[f"weight_{s}"], tensors[f"bias_{s}"]) for s in cfg.sources}
            stitching = cls(maps, cfg, facts["sources"], facts["text"], facts["report"])
        return stitching.to(device)


def check_folder(folder: Path) -> None:
    """Raise ValueError if a stitching must not be written to a folder, since it holds other things.

    A folder that is absent, empty or a stitching is fine.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file; name a folder for the stitching.")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            _read_config(folder)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{folder}' holds something else than a stitching; name another folder."
            ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.exists():
        raise FileNotFoundError(f"'{folder}' holds no stitching: there is no {CONFIG} in it.")
    facts = read_json(file, Any, _MAKE_ANEW)
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        raise ValueError(f"'{folder}' holds something else than a stitching, by its {CONFIG}.")
    with reading(file, _MAKE_ANEW):
        check(facts, _Facts)
    return facts


def fit_stitching(
    pairs: ActivationStream,
    held_out: ActivationStream,
    cfg: StitchingConfig | None = None,
    *,
    sources: Sequence[Mapping[str, Any]] = (),
    text: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Stitching:
    """Stitch two sources together on `pairs`, and check the maps on `held_out`.

    Both streams give raw activations. `sources` describes every source of the stream (`name`,
    `hookpoint`, `width`), `text` where the pairs come from; both are kept. Raises ValueError for
    too few pairs, activations that are not finite, constant sources, and sources or widths that do
    not fit the streams.
    """
    cfg = cfg or StitchingConfig()
    described = _check_streams(pairs, held_out, cfg, sources)
    begun = time.perf_counter()
    sample = pairs.sample(cfg.normalization_pairs)
    raw = [sample[s].to(device) for s in cfg.sources]
    normalization = Normalization.estimate(without_outliers(raw, cfg.sources, cfg.outlier_multiple))
    fitted, tested = (
        NormalizedPairs(stream, cfg.sources, normalization, cfg.outlier_multiple, device)
        for stream in (pairs, held_out)
    )
    exact, num_pairs = closed_form(fitted, cfg.ridge)
    counts = {"pairs": num_pairs, "outliers": fitted.outliers}
    widths = [pairs.d_sources[s] for s in cfg.sources]
    maps = exact if cfg.init == "closed_form" else random_maps(widths, cfg.seed, device)
    if cfg.steps:
        maps = train(
            maps,
            fitted,
            inversion_weight=cfg.inversion_weight,
            learning_rate=cfg.learning_rate,
            steps=cfg.steps,
            pairs_per_step=cfg.pairs_per_step,
        )
    scores = compare(cfg.sources, *evaluate([maps, exact], tested))
    counts |= {"held_out_outliers": tested.outliers, "seconds": time.perf_counter() - begun}
    on_raw = {
        number: normalization.fold(s, one).to(device)
        for s, (number, one) in enumerate(zip(cfg.sources, maps, strict=True))
    }
    return Stitching(on_raw, cfg, described, dict(text or {}), scores | counts)


def _check_streams(
    pairs: ActivationStream,
    held_out: ActivationStream,
    cfg: StitchingConfig,
    sources: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The descriptions of the two sources, once everything is found to fit together."""
    widths = pairs.d_sources
    if max(cfg.sources) >= len(widths):
        raise ValueError(
            f"The pairs have {len(widths)} sources, numbered from 0; there are no sources "
            f"{list(cfg.sources)} to stitch."
        )
    if held_out.d_sources != widths:
        raise ValueError(
            f"The held-out pairs have sources of widths {held_out.d_sources}, those to fit "
            f"{widths}; both must come from the same models and hookpoints."
        )
    if sources and [source["width"] for source in sources] != widths:
        raise ValueError(
            f"The sources are described as {[source['width'] for source in sources]} wide, but "
            f"the pairs are {widths} wide; describe every source of the pairs, in their order."
        )
    if pairs.num_pairs < 2:
        raise ValueError(
            "One pair is not enough to fit a map; give some ten for each dimension of the wider "
            f"source, {10 * max(widths[s] for s in cfg.sources):,} here."
        )
    if held_out.num_pairs < LEAST_HELD_OUT:
        raise ValueError(
            f"There are {held_out.num_pairs} held-out pairs, and {LEAST_HELD_OUT} are needed to "
            f"tell how good the maps are; hold out more."
        )
    return [dict(sources[s]) if sources else {"width": widths[s]} for s in cfg.sources]
