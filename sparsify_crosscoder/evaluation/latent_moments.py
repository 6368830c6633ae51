"""How latents and activations vary together: sums over one pass, from which all else follows.

N pairs, L latents looked at, S sources, d_in = D the sum of their widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..crosscoders import Crosscoder, SparseCode
from ..crosscoders.kernels import column_sums
from ..crosscoders.rdfc import ridge_regression
from ..store.normalization import within_norm
from ..store.stream import ActivationStream, every_pair

BATCH_PAIRS = 4096
NUM_FOLDS = 2
PRESENT = 0.5  # of its mean activation, weighted by itself: from there on a latent is present
DENSE_FRACTION = 0.1  # a latent that fires on more of the pairs has no text of its own to read


class LatentMoments:
    """First and second moments of normalised activations and of some latents; they add up.

    Attributes:
        pairs: N.
        x_sum, x_products: sums of x `[D]` and of its products `[D, D]`, in float64.
        z_sum, z_squares: sums of the latents' activations and of their squares, `[L]`, float64.
        firings: pairs on which each latent is active, `[L]`.
        cross: sums of activation times x, `[L, D]`, float32.
        present_sum, present_squares, present_cross: the same of `z * (z >= level)`, where level is
            `PRESENT` times `z_squares / z_sum` of the pairs up to then.
        gram: sums of the products of latents, a sparse `[L, L]` scipy matrix.
    """

    def __init__(self, num_latents: int, width: int):
        from scipy import sparse

        self.pairs = 0
        self.x_sum = torch.zeros(width, dtype=torch.float64)
        self.x_products = torch.zeros(width, width, dtype=torch.float64)
        self.z_sum = torch.zeros(num_latents, dtype=torch.float64)
        self.z_squares = torch.zeros(num_latents, dtype=torch.float64)
        self.firings = torch.zeros(num_latents, dtype=torch.long)
        self.cross = torch.zeros(num_latents, width)
        self.present_sum = torch.zeros(num_latents, dtype=torch.float64)
        self.present_squares = torch.zeros(num_latents, dtype=torch.float64)
        self.present_cross = torch.zeros(num_latents, width)
        self.gram: Any = sparse.csr_matrix((num_latents, num_latents), dtype=np.float64)

    def update(self, x: Tensor, code: SparseCode) -> None:
        """Add pairs: normalised activations `[N, D]` and their code over the latents `[N, L]`."""
        from scipy import sparse

        self.pairs += len(x)
        self.x_sum += x.double().sum(0).cpu()
        self.x_products += (x.T @ x).double().cpu()
        acts, length = code.acts.double().cpu(), code.shape[1]
        indices = code.indices.cpu()
        self.z_sum.index_add_(0, indices, acts)
        self.z_squares.index_add_(0, indices, acts.square())
        self.firings += torch.bincount(indices, minlength=length)
        self.cross += column_sums(x, code, code.acts).cpu()
        level = PRESENT * self.z_squares / self.z_sum.clamp_min(1e-30)
        present = acts * (acts >= level[indices])
        self.present_sum.index_add_(0, indices, present)
        self.present_squares.index_add_(0, indices, present.square())
        self.present_cross += column_sums(x, code, present.to(code.acts)).cpu()
        entries = (acts.numpy(), (code.rows.cpu().numpy(), indices.numpy()))
        z = sparse.csr_matrix(entries, shape=code.shape)
        self.gram = self.gram + z.T @ z

    def __add__(self, other: LatentMoments) -> LatentMoments:
        total = LatentMoments(len(self.z_sum), len(self.x_sum))
        for name in vars(self):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    @property
    def x_covariance(self) -> Tensor:
        """Covariance of the activations, `[D, D]`."""
        mean = self.x_sum / self.pairs
        return self.x_products / self.pairs - mean.outer(mean)

    @property
    def z_variance(self) -> Tensor:
        """Variance of each latent's activation over all pairs, `[L]`."""
        return self._variance(self.z_squares, self.z_sum)

    @property
    def present_variance(self) -> Tensor:
        """The same of the activation where a latent is present."""
        return self._variance(self.present_squares, self.present_sum)

    @property
    def covariance(self) -> Tensor:
        """Covariance of every latent with the activations, `[L, D]`."""
        return self._covariance(self.cross, self.z_sum)

    @property
    def present_covariance(self) -> Tensor:
        """The same with the activation where a latent is present."""
        return self._covariance(self.present_cross, self.present_sum)

    def _variance(self, squares: Tensor, sums: Tensor) -> Tensor:
        return (squares / self.pairs - (sums / self.pairs).square()).clamp_min(0)

    def _covariance(self, products: Tensor, sums: Tensor) -> Tensor:
        # In place: these are the largest matrices.
        result = products.double().div_(self.pairs)
        return result.addr_(sums / self.pairs, self.x_sum / self.pairs, alpha=-1)

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


def bytes_needed(num_latents: int, width: int) -> int:
    """Memory that judging so many latents over activations of a width takes at most, in bytes.

    Two folds and their sum, and what regressions and covariances in float64 need beside them, as
    measured: with two sources of equal width and as many latents each, a quarter less a latent.
    """
    return 68 * num_latents * width + 60 * width * width


@torch.no_grad()
def collect(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    latents: Tensor,
    *,
    num_pairs: int | None = None,
    outlier_multiple: float = 2.0,
) -> list[LatentMoments]:
    """Moments of some latents `[L]` over a stream's pairs, in `NUM_FOLDS` separate parts.

    Latents are read as at inference. Outliers are left out as in training (B.1.4).
    """
    folds = [LatentMoments(len(latents), crosscoder.d_in) for _ in range(NUM_FOLDS)]
    batches = encoded(crosscoder, stream, latents, num_pairs, outlier_multiple)
    for number, (x, code, _) in enumerate(batches):
        folds[number % NUM_FOLDS].update(x, code)
    return folds


@torch.no_grad()
def encoded(
    crosscoder: Crosscoder,
    stream: ActivationStream,
    latents: Tensor,
    num_pairs: int | None = None,
    outlier_multiple: float = 2.0,
    *,
    decode: bool = False,
) -> Iterator[tuple[Tensor, SparseCode, Tensor]]:
    """Batches of normalised activations `[N, D]` with the code `[N, L]` of some latents.

    Of the stream's first `num_pairs`, all by default, every one once, but for outliers: those
    whose norm is too large a multiple of the crosscoder's `median_norms`, or of the batch's median
    where it has none. The third is the reconstruction by all latents `[N, D]`, or empty if it is
    not asked for. Raises ValueError if there are no pairs.
    """
    was_training = crosscoder.training
    crosscoder.eval()
    place = torch.full((crosscoder.num_latents,), -1, device=crosscoder.device)
    place[latents.to(crosscoder.device)] = torch.arange(len(latents), device=crosscoder.device)
    if stream.num_pairs < 1 or (num_pairs is not None and num_pairs < 1):
        raise ValueError(f"There are no pairs to look at: {num_pairs} of {stream.num_pairs:,}.")
    total = min(num_pairs or stream.num_pairs, stream.num_pairs)
    bar = tqdm(total=total, desc="Measuring latents", unit="pair", delay=1)
    try:
        for batch in every_pair(stream, BATCH_PAIRS, num_pairs, NUM_FOLDS):
            bar.update(len(batch[0]))
            batch = [part.to(crosscoder.device) for part in batch]
            keep = within_norm(batch, outlier_multiple, medians=crosscoder.median_norms)
            raw = torch.cat([part[keep].to(crosscoder.dtype) for part in batch], 1)
            code = crosscoder.encode_sparse(raw)
            x_hat = crosscoder.normalize(crosscoder.decode_sparse(code)) if decode else raw[:0]
            yield crosscoder.normalize(raw), restricted(code, place, len(latents)), x_hat
    finally:
        bar.close()
        crosscoder.train(was_training)


def restricted(code: SparseCode, place: Tensor, num_latents: int) -> SparseCode:
    """The entries of some latents: `place` [M] is a latent's new number, or -1."""
    kept = (place[code.indices] >= 0).nonzero()[:, 0]
    return SparseCode(
        code.acts[kept], place[code.indices[kept]], code.rows[kept], (code.shape[0], num_latents)
    )


def predicted_share(
    fit: LatentMoments, test: LatentMoments, columns: Sequence[slice], ridge: float
) -> Tensor:
    """R2 of latents predicted linearly from some columns of the activations, `[L]`.

    The weights come from `fit`, the R2 is that of `test`; it may be negative. It is 0 for a latent
    that never fires in `test`.
    """
    read = torch.cat([torch.arange(c.start, c.stop) for c in columns])
    weights = ridge_regression(fit.x_covariance[read][:, read], fit.covariance[:, read].T, ridge)
    tested = test.x_covariance[read][:, read]
    explained = 2 * (weights.T * test.covariance[:, read]).sum(1)
    explained -= ((tested @ weights) * weights).sum(0)
    variance = test.z_variance
    return torch.where(variance > 0, explained / variance.clamp_min(1e-30), 0.0)
