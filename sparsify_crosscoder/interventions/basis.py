"""Whether two models share a basis, as a model and its fine-tune do: directions then carry over.

D is the width of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..crosscoders.shared_basis import LEAST_R2, smallest_r2
from ..harvest.hookpoints import first_tensor, normalize_hookpoint
from ..runs.run import Run
from ..store.normalization import within_norm
from .affine_maps import AffineMap
from .stitching import Stitching, StitchingConfig

Map = Literal["auto", "identity", "stitching"]

ENOUGH_PAIRS = 4096


class IdentityFit:
    """How much of two sources' activations each other explain as they are, from aligned pairs.

    Means are left out, since directions do not have them, and so are outliers, as in training.
    """

    def __init__(self, first: int, second: int, outlier_multiple: float = 2.0):
        self.sources = (first, second)
        self.outlier_multiple = outlier_multiple
        self.pairs = 0
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, raw: Sequence[Tensor]) -> None:
        """Take in raw activations, [n, D] for each source of the run."""
        keep = within_norm(list(raw), self.outlier_multiple)
        a, b = (raw[s][keep].double().cpu() for s in self.sources)
        self.pairs += len(a)
        for i, x in enumerate((a, b, b - a)):
            if len(self._sums) == i:
                self._sums.append(torch.zeros(x.shape[1], dtype=torch.float64))
                self._squares.append(torch.zeros(x.shape[1], dtype=torch.float64))
            self._sums[i] += x.sum(0)
            self._squares[i] += x.pow(2).sum(0)

    def watch(self, chunks: Iterable[tuple[list[Tensor], Any, Any]]) -> Iterator[Any]:
        """The same chunks, taken in as they pass."""
        for chunk in chunks:
            self.add(chunk[0])
            yield chunk

    def r2(self) -> float:
        """The smaller of both models' R2, without the dimensions of largest variance, in which
        even models without anything in common may be alike. Raises ValueError without pairs."""
        if self.pairs < 2:
            raise ValueError("There are no pairs to compare both models' activations on.")
        mean = [total / self.pairs for total in self._sums]
        first, second, difference = (
            (squares / self.pairs - m.pow(2)).clamp_min(0)
            for squares, m in zip(self._squares, mean, strict=True)
        )
        return smallest_r2([first, second], [difference, difference])


@torch.inference_mode()
def identity_r2(
    models: Sequence[Any], tokenizers: Sequence[Any], hookpoint: str, texts: Sequence[str]
) -> float:
    """`IdentityFit.r2` of two models at one hookpoint over some texts, their first tokens left out.

    Raises ValueError where the models have no such module, or read the texts as other tokens.
    """
    fit = IdentityFit(0, 1)
    rows: list[list[Tensor]] = [[], []]
    for text in texts:
        ids = [t(text, add_special_tokens=False)["input_ids"] for t in tokenizers]
        if ids[0] != ids[1]:
            raise ValueError("both models read text as other tokens")
        for out, model in zip(rows, models, strict=True):
            module = model.base_model.get_submodule(normalize_hookpoint(model, hookpoint))
            seen: list[Tensor] = []
            handle = module.register_forward_hook(
                lambda module, args, output, seen=seen: seen.append(first_tensor(output))
            )
            try:
                model(input_ids=torch.tensor([ids[0]], device=model.device), use_cache=False)
            finally:
                handle.remove()
            out.append(seen[0][0, 1:].float().cpu())
    joined = [torch.cat(parts) for parts in rows]
    if joined[0].shape != joined[1].shape:
        raise ValueError(f"they are {joined[0].shape[1]} and {joined[1].shape[1]} wide")
    fit.add(joined)
    return fit.r2()


def may_share_basis(sources: Sequence[Mapping[str, Any]], first: int, second: int) -> bool:
    """Whether two of a run's sources are read at the same place and width."""
    one, other = sources[first], sources[second]
    return all(one.get(name) == other.get(name) for name in ("hookpoint", "width"))


def identity_stitching(
    width: int,
    sources: tuple[int, int],
    r2: float | None = None,
    described: Sequence[Mapping[str, Any]] = (),
) -> Stitching:
    """The identity as the map between two sources `[D]`.

    `r2` is what was found of it, `described` has both as a run describes its sources.
    """
    maps = {s: AffineMap(torch.eye(width), torch.zeros(width)) for s in sources}
    report: dict[str, Any] = {"identity": True, "r2": r2}
    config = StitchingConfig(sources=sources, steps=0)
    return Stitching(maps, config, [dict(one) for one in described], report=report)


def measured_identity(
    run: Run, sources: Sequence[Mapping[str, Any]], device: torch.device | str | None = None
) -> Stitching | None:
    """The identity between a run's first two sources, with its R2 on the run's own pairs.

    `sources` are those of its crosscoder. None where they share no basis.
    """
    if not may_share_basis(sources, 0, 1):
        return None
    fit = IdentityFit(0, 1, run.config.outlier_multiple)
    for _ in fit.watch(run.first_pairs(ENOUGH_PAIRS, device).chunks):
        pass
    r2 = fit.r2()
    if r2 < LEAST_R2:
        return None
    return identity_stitching(int(sources[0]["width"]), (0, 1), r2, sources[:2])


def identity_line(first: str, second: str, r2: float | None) -> str:
    """What is said where a vector of one model is used in the other; `r2` is None if asked for."""
    why = "by --map identity" if r2 is None else f"R2 of the identity {r2:.2f}"
    return f"{first} and {second} share a basis ({why}): a vector of one serves in the other."
