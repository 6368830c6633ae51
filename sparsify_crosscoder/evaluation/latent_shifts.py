"""How far the residual of each source moves where a latent is present.

N pairs, T texts, M latents, V residuals, D width of a source. What is found in one half of the
texts is tested in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..crosscoders import Crosscoder, SparseCode
from ..crosscoders.kernels import column_sums, entry_dots
from ..store.normalization import within_norm
from ..store.order import random_numbers
from ..text.roles import Role
from .latent_moments import DENSE_FRACTION, PRESENT, restricted
from .noted_pairs import NotedPairs
from .residuals import Moments, Residual
from .text_clusters import HALVES, Tested, TextSums

HALF = 5  # what a random half of the texts is for, beside `store.order` and `noted_pairs`


@dataclass(frozen=True)
class CodedPairs:
    """Pairs without outliers, and where each latent is present on them.

    Behind the M latents may be columns of another kind; see `difference_components`.
    """

    crosscoder: Crosscoder
    pairs: NotedPairs
    texts: Tensor
    """Text of each pair, numbered from 0, `[N]`."""

    half_of_text: Tensor
    """0 or 1, of each text."""

    codes: list[SparseCode]
    """Of each chunk of the pairs, where latents are present and how active they are there."""

    level: Tensor
    """Activation from which a latent is present, `[M]`: half of its mean, weighted by itself."""

    firings: Tensor
    """Pairs on which each latent is active, `[M]`."""

    present: Tensor
    """Pairs on which it is present, `[M]`."""

    moments: Moments
    """Of the normalised activations."""

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def num_texts(self) -> int:
        return len(self.half_of_text)

    @property
    def dense(self) -> Tensor:
        """Whether a latent fires on over a tenth of the pairs, `[M]`."""
        return self.firings > DENSE_FRACTION * len(self)

    def entries(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where some latents `[L]` are present: activation, place among them, and pair, `[E]`."""
        place = torch.full((len(self.level),), -1)
        place[latents] = torch.arange(len(latents))
        parts = []
        for here, code in zip(self.pairs.places(), self.codes, strict=True):
            some = restricted(code, place, len(latents))
            parts.append((some.acts, some.indices, some.rows + here.start))
        acts, columns, rows = (torch.cat(of) for of in zip(*parts, strict=True))
        return acts, columns, rows

    def heard_anywhere(self) -> Tensor | None:
        """Mean KL of what an assistant says in each text, nats `[T]`, or of all of a text without
        one; of each pair `[N]` where no text has any. None where the KL is not known."""
        known, roles = self.pairs.kl, self.pairs.roles
        if known is None or not self._answered:
            return None if known is None else known.double()
        counts = torch.ones_like(self.texts, dtype=torch.float64)
        said = roles == Role.ASSISTANT
        answered = torch.zeros(self.num_texts, dtype=torch.bool)
        answered[self.texts[said]] = True
        counts[~said & answered[self.texts]] = 0
        total = torch.zeros(2, self.num_texts, dtype=torch.float64)
        total.index_add_(1, self.texts, torch.stack([known.double() * counts, counts]))
        return total[0] / total[1].clamp_min(1)

    def heard_where_present(self) -> Tensor | None:
        """Mean of the same over the texts, or else the pairs, on which each latent is present,
        `[M]`."""
        kl = self.heard_anywhere()
        if kl is None:
            return None
        columns = len(self.level)
        of_pair = self.texts if self._answered else torch.arange(len(self))
        total = torch.zeros(2, columns, dtype=torch.float64)
        seen = torch.zeros(0, dtype=torch.long)
        for here, code in zip(self.pairs.places(), self.codes, strict=True):
            places = of_pair[here]
            cells = (places[code.rows] * columns + code.indices).unique()
            fresh = cells[~torch.isin(cells, seen)]
            heard = kl[fresh // columns]
            total.index_add_(1, fresh % columns, torch.stack([heard, torch.ones_like(heard)]))
            # A text may go on in the next chunk.
            seen = torch.cat([seen, cells])
            seen = seen[seen // columns == places[-1]]
        return total[0] / total[1].clamp_min(1)

    @property
    def _answered(self) -> bool:
        """Whether an assistant says anything."""
        roles = self.pairs.roles
        return roles is not None and bool((roles == Role.ASSISTANT).any())

    def batches(self) -> Iterator[tuple[slice, Tensor, SparseCode]]:
        """Places, normalised activations `[n, d_in]` and present latents of all pairs.

        Behind the activations are those of the model beside a source, if there is one.
        """
        chunks = zip(self.pairs.chunks(), self.codes, strict=True)
        bar = tqdm(total=len(self), desc="Comparing residuals", unit="pair", delay=1)
        with bar:
            for (here, raw), code in chunks:
                yield here, self._beside(here, raw, normalized(self.crosscoder, raw)), code
                bar.update(len(raw[0]))

    def _beside(self, here: slice, raw: list[Tensor], x: Tensor) -> Tensor:
        beside = self.pairs.beside
        if beside is None:
            return x
        instead = list(raw)
        instead[beside.source] = beside.read(self.pairs.numbers[here])
        columns = self.crosscoder.columns[beside.source]
        return torch.cat([x, normalized(self.crosscoder, instead)[:, columns]], 1)


def normalized(crosscoder: Crosscoder, raw: Sequence[Tensor]) -> Tensor:
    """Raw activations per source as one normalised `[n, d_in]`."""
    parts = [part.to(crosscoder.device, crosscoder.dtype) for part in raw]
    return crosscoder.normalize(torch.cat(parts, 1)).float()


@torch.no_grad()
def coded(
    crosscoder: Crosscoder,
    pairs: NotedPairs,
    outlier_multiple: float,
    level: Tensor | None = None,
) -> CodedPairs:
    """Read pairs with a crosscoder, as at inference; `level` [M] is measured if not given.

    Outliers are left out as in training (B.1.4). Raises ValueError for fewer than two pairs.
    """
    crosscoder = crosscoder.eval()
    moments = Moments(crosscoder.d_in, crosscoder.device)
    masks, entries = [], []
    firings = torch.zeros(crosscoder.num_latents, dtype=torch.long)
    sums, squares = torch.zeros(2, crosscoder.num_latents, dtype=torch.float64)
    bar = tqdm(total=len(pairs), desc="Encoding", unit="pair", delay=1)
    with bar:
        for _, raw in pairs.chunks():
            raw = [part.to(crosscoder.device) for part in raw]
            keep = within_norm(raw, outlier_multiple, medians=crosscoder.median_norms)
            raw = [part[keep] for part in raw]
            moments.update(normalized(crosscoder, raw))
            code = crosscoder.encode_sparse([part.to(crosscoder.dtype) for part in raw])
            acts, indices, rows = (part.cpu() for part in (code.acts, code.indices, code.rows))
            masks.append(keep.cpu())
            entries.append((acts, indices.int(), rows + moments.count - len(raw[0])))
            firings += torch.bincount(indices, minlength=len(firings))
            sums.index_add_(0, indices, acts.double())
            squares.index_add_(0, indices, acts.double().square())
            bar.update(len(keep))
    pairs = pairs.at(torch.cat(masks)) if masks else pairs
    if len(pairs) < 2:
        raise ValueError("A difference needs pairs to look at; there are fewer than two.")
    level = PRESENT * squares / sums.clamp_min(1e-30) if level is None else level
    acts, indices, rows = (torch.cat(parts) for parts in zip(*entries, strict=True))
    there = (acts > 0) & (acts >= level[indices])
    acts, indices, rows = acts[there], indices[there].long(), rows[there]
    _, texts = pairs.texts.unique(return_inverse=True)
    num_texts = int(texts.max()) + 1
    order = random_numbers(HALF, 0).permutation(num_texts)
    return CodedPairs(
        crosscoder,
        pairs,
        texts,
        torch.from_numpy(order % HALVES),
        _by_chunk(pairs, acts, indices, rows, crosscoder.num_latents),
        level,
        firings,
        torch.bincount(indices, minlength=crosscoder.num_latents),
        moments,
    )


def _by_chunk(
    pairs: NotedPairs, acts: Tensor, indices: Tensor, rows: Tensor, num_latents: int
) -> list[SparseCode]:
    codes = []
    for here in pairs.places():
        edges = torch.searchsorted(rows, torch.tensor([here.start, here.stop]))
        mine = slice(int(edges[0]), int(edges[1]))
        shape = (here.stop - here.start, num_latents)
        codes.append(SparseCode(acts[mine], indices[mine], rows[mine] - here.start, shape))
    return codes


@dataclass(frozen=True)
class LatentShifts:
    """What one residual does where latents are present, `[M]` everywhere."""

    tested: Tested
    """Mean white residual where a latent is present, along the direction that the other half of
    the texts gives it: in standard deviations."""

    explained: Tensor
    """Share of the variance along its own direction that a latent's presence explains, unbiased."""

    directions: Tensor
    """Of the white residual, `[M, D]`, unit vectors; float16."""


@torch.no_grad()
def latent_shifts(
    found: CodedPairs, residuals: Sequence[Residual], memory: float
) -> list[LatentShifts]:
    """The shifts of every residual with every latent, in passes of `memory` bytes."""
    device, num_latents = found.crosscoder.device, len(found.level)
    per_latent = 4 * HALVES * 2 * sum(len(one.mean) for one in residuals)
    at_once = max(int(memory // per_latent), 1)
    parts: list[list[LatentShifts]] = [[] for _ in residuals]
    for start in range(0, num_latents, at_once):
        latents = torch.arange(start, min(start + at_once, num_latents))
        place = torch.full((num_latents,), -1)
        place[latents] = torch.arange(len(latents))
        some = _Pass(found, residuals, place, len(latents), device)
        for v, shifts in enumerate(some.shifts()):
            parts[v].append(shifts)
    return [_joined(of_residual) for of_residual in parts]


@torch.no_grad()
def explained_along(
    reference: CodedPairs, residuals: Sequence[Residual], shifts: Sequence[LatentShifts]
) -> list[Tensor]:
    """Share of the variance along the same directions that presence explains on other pairs.

    `[M]` for each residual, 0 where the residual moves the other way.
    """
    device = reference.crosscoder.device
    directions = [moved.directions.float().to(device) for moved in shifts]
    totals = [torch.zeros(len(one.mean), device=device) for one in residuals]
    sums = torch.zeros(len(residuals), len(reference.level), dtype=torch.float64)
    for _, x, code in reference.batches():
        there = _on(code, device)
        for v, one in enumerate(residuals):
            white = one.apply(x)
            totals[v] += white.sum(0)
            along = entry_dots(white, directions[v], there)
            sums[v].index_add_(0, code.indices, along.double().cpu())
    presence = reference.present / len(reference)
    odds = presence.double() / (1 - presence.double()).clamp_min(1e-12)
    result = []
    for direction, total, found in zip(directions, totals, sums, strict=True):
        anywhere = (direction @ (total / len(reference))).double().cpu()
        effect = found / reference.present.clamp_min(1) - anywhere
        result.append(odds * effect.clamp_min(0).square())
    return result


class _Pass:
    """Two readings of the pairs for some of the latents."""

    def __init__(
        self,
        found: CodedPairs,
        residuals: Sequence[Residual],
        place: Tensor,
        size: int,
        device: torch.device,
    ):
        self.found, self.residuals, self.device = found, residuals, device
        self.place, self.size = place, size

    def entries(self) -> Iterator[tuple[int, Tensor, SparseCode, Tensor]]:
        """Half, normalised activations, and where latents are present in it, with the texts."""
        half_of_pair = self.found.half_of_text[self.found.texts]
        for here, x, code in self.found.batches():
            code = restricted(code, self.place, self.size)
            half = half_of_pair[here][code.rows]
            for h in range(HALVES):
                mine = half == h
                rows = code.rows[mine]
                part = SparseCode(code.acts[mine], code.indices[mine], rows, code.shape)
                yield h, x, part, self.found.texts[here][rows]

    def shifts(self) -> list[LatentShifts]:
        residuals, size = self.residuals, self.size
        widths = [len(one.mean) for one in residuals]
        sums = [torch.zeros(HALVES, size, width, device=self.device) for width in widths]
        counts = torch.zeros(HALVES, size, dtype=torch.float64)
        for h, x, code, _ in self.entries():
            counts[h] += torch.bincount(code.indices, minlength=size)
            there = _on(code, self.device)
            for total, one in zip(sums, residuals, strict=True):
                total[h] += column_sums(one.apply(x), there, torch.ones_like(there.acts).float())
        units = [F.normalize(total, dim=2) for total in sums]
        by_text = [TextSums(size, self.found.num_texts) for _ in residuals]
        for h, x, code, texts in self.entries():
            there = _on(code, self.device)
            for unit, told, one in zip(units, by_text, residuals, strict=True):
                along = entry_dots(one.apply(x), unit[1 - h].contiguous(), there)
                told.add(code.indices, texts, along.cpu())
        half_of_text = self.found.half_of_text
        result = []
        for total, told in zip(sums, by_text, strict=True):
            means = total.cpu().double() / counts.clamp_min(1)[..., None]
            presence = counts.sum(0) / len(self.found)
            odds = presence / (1 - presence).clamp_min(1e-12)
            explained = odds * (means[0] * means[1]).sum(1)
            directions = F.normalize(total.sum(0), dim=1).half().cpu()
            result.append(LatentShifts(Tested.of(told.means(half_of_text)), explained, directions))
        return result


def _on(code: SparseCode, device: torch.device) -> SparseCode:
    acts, indices, rows = (part.to(device) for part in (code.acts, code.indices, code.rows))
    return SparseCode(acts, indices, rows, code.shape)


def _joined(parts: list[LatentShifts]) -> LatentShifts:
    tested = Tested(
        torch.cat([one.tested.effect for one in parts]),
        torch.cat([one.tested.t for one in parts]),
        torch.cat([one.tested.p_value for one in parts]),
    )
    return LatentShifts(
        tested,
        torch.cat([one.explained for one in parts]),
        torch.cat([one.directions for one in parts]),
    )
