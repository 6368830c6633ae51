"""How latents and activations vary together: sums over one pass, from which all else follows.

N pairs, L latents looked at, S sources, d_in = D the sum of their widths, K folds of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..crosscoders import Crosscoder, SparseCode
from ..crosscoders.kernels import column_sums
from ..store.normalization import within_norm
from ..store.stream import ActivationStream, every_pair

BATCH_PAIRS = 4096
NUM_FOLDS = 8
PRESENT = 0.5  # of its mean activation, weighted by itself: from there on a latent is present
DENSE_FRACTION = 0.1  # a latent that fires on more of the pairs has no text of its own to read

Kind = Literal["cross", "present_cross"]
"""Sums over a latent's activation, or over its activation where it is present."""


class Folds:
    """Which of K folds pairs belong to: whole texts where these are known, else whole batches.

    Pairs of one text are not independent, so what is known of one fold must not come from texts of
    another. Texts are dealt out in turn as they first appear.
    """

    def __init__(self, num_folds: int = NUM_FOLDS):
        self.num_folds = num_folds
        self._of_text: dict[int, int] = {}
        self._batches = 0

    def of(self, batch: Encoded) -> Tensor:
        """Fold of each pair of a batch, `[N]`."""
        if batch.texts is None:
            self._batches += 1
            return torch.full((len(batch.x),), (self._batches - 1) % self.num_folds)
        texts, inverse = batch.texts.unique(return_inverse=True)
        dealt = [
            self._of_text.setdefault(text, len(self._of_text) % self.num_folds)
            for text in texts.tolist()
        ]
        return torch.tensor(dealt, dtype=torch.long)[inverse]


class LatentMoments:
    """First and second moments of normalised activations and of some latents, in K folds.

    Attributes:
        read: pairs that were read, those that were left out among them.
        fold_pairs: pairs of each fold, `[K]`, float64.
        x_sum, x_products: sums of x `[D]` and of its products `[D, D]`, in float64.
        error_sum: sum of what all latents leave of x, `[D]`, float64.
        z_sums, z_squares: sums of the latents' activations and of their squares, `[K, L]`, float64.
        fired: pairs on which each latent is active, `[K, L]`.
        cross: sums of activation times x, `[K, L, D]`, float32.
        present_sums, present_squares, present_cross: the same of `z * (z >= level)`, where level is
            `PRESENT` times the squares over the sums of the pairs up to then.
        error_cross: sums of activation times what all latents leave of x, `[K, L, D]`, float32.
        gram: sums of the products of latents, a sparse `[L, L]` scipy matrix.
    """

    def __init__(self, num_latents: int, width: int, num_folds: int = NUM_FOLDS):
        from scipy import sparse

        self.folds = Folds(num_folds)
        self.read = 0
        self.fold_pairs = torch.zeros(num_folds, dtype=torch.float64)
        self.x_sum = torch.zeros(width, dtype=torch.float64)
        self.error_sum = torch.zeros(width, dtype=torch.float64)
        self.x_products = torch.zeros(width, width, dtype=torch.float64)
        of_latents = (num_folds, num_latents)
        self.z_sums, self.z_squares, self.present_sums, self.present_squares = torch.zeros(
            4, *of_latents, dtype=torch.float64
        )
        self.fired = torch.zeros(of_latents, dtype=torch.long)
        self.cross, self.present_cross, self.error_cross = torch.zeros(3, *of_latents, width)
        self.gram: Any = sparse.csr_matrix((num_latents, num_latents), dtype=np.float64)

    def update(self, batch: Encoded) -> None:
        """Add pairs, with the code over these latents."""
        from scipy import sparse

        x, code, left = batch.x, batch.code, batch.x - batch.x_hat
        folds = self.folds.of(batch)
        self.read += batch.read
        self.fold_pairs += torch.bincount(folds, minlength=len(self.fold_pairs))
        self.x_sum += x.double().sum(0).cpu()
        self.error_sum += left.double().sum(0).cpu()
        self.x_products += (x.T @ x).double().cpu()
        acts, rows, indices = code.acts.double().cpu(), code.rows.cpu(), code.indices.cpu()
        at = folds[rows] * self.fired.shape[1] + indices
        self.z_sums.view(-1).index_add_(0, at, acts)
        self.z_squares.view(-1).index_add_(0, at, acts.square())
        self.fired.view(-1).index_add_(0, at, torch.ones_like(at))
        level = PRESENT * self.z_squares.sum(0) / self.z_sums.sum(0).clamp_min(1e-30)
        present = acts * (acts >= level[indices])
        self.present_sums.view(-1).index_add_(0, at, present)
        self.present_squares.view(-1).index_add_(0, at, present.square())
        for fold in folds.unique().tolist():
            mine = (folds == fold).to(x.device)
            entries = mine[code.rows].nonzero()[:, 0]
            if not len(entries):
                continue
            latents, columns = code.indices[entries].unique(return_inverse=True)
            rows_here = (mine.cumsum(0) - 1)[code.rows[entries]]
            shape = (int(mine.sum()), len(latents))
            part = SparseCode(code.acts[entries], columns, rows_here, shape)
            latents = latents.cpu()
            here = x[mine]
            weights = present.to(code.acts)[entries]
            for sums, y, weight in (
                (self.cross, here, part.acts),
                (self.present_cross, here, weights),
                (self.error_cross, left[mine], part.acts),
            ):
                sums[fold].index_add_(0, latents, column_sums(y, part, weight).float().cpu())
        z = sparse.csr_matrix((acts.numpy(), (rows.numpy(), indices.numpy())), shape=code.shape)
        self.gram = self.gram + z.T @ z

    @property
    def pairs(self) -> int:
        """Pairs that were looked at."""
        return int(self.fold_pairs.sum())

    @property
    def firings(self) -> Tensor:
        """Pairs on which each latent is active, `[L]`."""
        return self.fired.sum(0)

    @property
    def z_sum(self) -> Tensor:
        """Sum of each latent's activations, `[L]`."""
        return self.z_sums.sum(0)

    @property
    def x_covariance(self) -> Tensor:
        """Covariance of the activations, `[D, D]`."""
        mean = self.x_sum / self.pairs
        return self.x_products / self.pairs - mean.outer(mean)

    @property
    def z_variance(self) -> Tensor:
        """Variance of each latent's activation over all pairs, `[L]`."""
        return _variance(self.z_squares.sum(0), self.z_sum, self.pairs)

    def products(self, kind: Kind, some: Tensor) -> Tensor:
        """Sums of z (x - mean x) of the latents at some places, `[K, l, D]`."""
        cross, sums = (
            (self.cross, self.z_sums)
            if kind == "cross"
            else (self.present_cross, self.present_sums)
        )
        mean = (self.x_sum / self.pairs).float()
        return torch.addcmul(cross[:, some], sums[:, some, None].float(), mean, value=-1)

    def variances(self, kind: Kind) -> Tensor:
        """Variance of every latent over all pairs, and without each fold, `[1 + K, L]`."""
        squares, sums = (
            (self.z_squares, self.z_sums)
            if kind == "cross"
            else (self.present_squares, self.present_sums)
        )
        pairs = left_out(self.fold_pairs[:, None]).clamp_min(1)
        return _variance(left_out(squares), left_out(sums), pairs)

    def correlations(self) -> Any:
        """Correlation of the latents' activations, a sparse `[L, L]` scipy matrix.

        Pairs of latents that never fire together are left out, though their correlation is a
        little below 0.
        """
        mean = (self.z_sum / self.pairs).numpy()
        deviation = self.z_variance.sqrt().clamp_min(1e-30).numpy()
        result = self.gram.tocoo()
        rows, columns = result.row, result.col
        result.data = result.data / self.pairs - mean[rows] * mean[columns]
        result.data /= deviation[rows] * deviation[columns]
        return result.tocsr()


def left_out(sums: Tensor) -> Tensor:
    """Of sums `[K, ...]` per fold, that of all folds and that without each one, `[1 + K, ...]`."""
    total = sums.sum(0, keepdim=True)
    return torch.cat([total, total - sums])


def _variance(squares: Tensor, sums: Tensor, pairs: Tensor | int) -> Tensor:
    return (squares / pairs - (sums / pairs).square()).clamp_min(0)


def bytes_needed(num_latents: int, width: int) -> int:
    """Memory that judging so many latents over activations of a width takes at most, in bytes.

    Three sums per fold, and what covariances and regressions in float64 need beside them.
    """
    return 12 * NUM_FOLDS * num_latents * width + 80 * width * width


@torch.no_grad()
def collect(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    latents: Tensor,
    *,
    num_pairs: int | None = None,
    outlier_multiple: float = 2.0,
    into: LatentMoments | None = None,
) -> LatentMoments:
    """Moments of some latents `[L]` over a stream's first `num_pairs`, all by default.

    Latents are read as at inference. Outliers are left out as in training (B.1.4). Goes on where
    `into` ends, if that is given.
    """
    moments = into or LatentMoments(len(latents), crosscoder.d_in)
    first = moments.read
    batches = encoded(
        crosscoder, stream, latents, num_pairs, outlier_multiple, decode=True, first=first
    )
    for batch in batches:
        moments.update(batch)
    return moments


class Encoded(NamedTuple):
    """Some pairs, and the code of some latents."""

    x: Tensor
    """Normalised activations `[N, D]`."""

    code: SparseCode
    """`[N, L]`."""

    x_hat: Tensor
    """Reconstruction by all latents `[N, D]`; empty if it was not asked for."""

    texts: Tensor | None
    """Text that each pair is from `[N]`, if that is known."""

    read: int
    """Pairs that were read, outliers among them."""


@torch.no_grad()
def encoded(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    latents: Tensor,
    num_pairs: int | None = None,
    outlier_multiple: float = 2.0,
    *,
    decode: bool = False,
    first: int = 0,
) -> Iterator[Encoded]:
    """Batches of normalised activations with the code of some latents.

    Of the stream's first `num_pairs`, all by default, without the `first` ones of them, every one
    once, but for outliers: those whose norm is too large a multiple of the crosscoder's
    `median_norms`, or of the batch's median where it has none. Raises ValueError if there are no
    pairs.
    """
    was_training = crosscoder.training
    crosscoder.eval()
    place = torch.full((crosscoder.num_latents,), -1, device=crosscoder.device)
    place[latents.to(crosscoder.device)] = torch.arange(len(latents), device=crosscoder.device)
    if stream.num_pairs < 1 or (num_pairs is not None and num_pairs < 1):
        raise ValueError(f"There are no pairs to look at: {num_pairs} of {stream.num_pairs:,}.")
    total = min(num_pairs or stream.num_pairs, stream.num_pairs)
    bar = tqdm(total=total - first, desc="Measuring latents", unit="pair", delay=1)
    try:
        for batch in every_pair(stream, BATCH_PAIRS, num_pairs, NUM_FOLDS, first):
            read = len(batch[0])
            bar.update(read)
            texts = stream.texts(first, first + read)
            first += read
            batch = [part.to(crosscoder.device) for part in batch]
            keep = within_norm(batch, outlier_multiple, medians=crosscoder.median_norms)
            raw = torch.cat([part[keep].to(crosscoder.dtype) for part in batch], 1)
            code = crosscoder.encode_sparse(raw)
            x_hat = crosscoder.normalize(crosscoder.decode_sparse(code)) if decode else raw[:0]
            texts = None if texts is None else texts[keep.cpu()]
            chosen = restricted(code, place, len(latents))
            yield Encoded(crosscoder.normalize(raw), chosen, x_hat, texts, read)
    finally:
        bar.close()
        crosscoder.train(was_training)


def restricted(code: SparseCode, place: Tensor, num_latents: int) -> SparseCode:
    """The entries of some latents: `place` [M] is a latent's new number, or -1."""
    kept = (place[code.indices] >= 0).nonzero()[:, 0]
    return SparseCode(
        code.acts[kept], place[code.indices[kept]], code.rows[kept], (code.shape[0], num_latents)
    )
